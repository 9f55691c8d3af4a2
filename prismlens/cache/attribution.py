"""The norm and the unembedding applied to parts of the stream, so that the parts still add up; knows no hook names."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prismlens.errors import SettingError


def rms_scale(stream: Float[Tensor, "n d_model"], eps: float) -> Float[Tensor, "n 1"]:
    """``sqrt(mean(x^2) + eps)`` of the whole stream, at least in float32 (Zhang & Sennrich 2019, 1910.07467)."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (wide.square().mean(-1, keepdim=True) + eps).sqrt()


def normed(
    stack: Float[Tensor, "*lead d_model"], scale: Float[Tensor, "*where 1"], weight: Float[Tensor, " d_model"]
) -> Float[Tensor, "*lead d_model"]:
    """``x / scale * weight`` for every part: RMSNorm is linear once the scale is given, and there is no centring.

    Args:
        stack: parts of the stream, components first.
        scale: of the whole stream, at the same positions.
        weight: of the norm.

    Raises:
        SettingError: the stack's positions are not those of the scale.
    """
    positions = tuple(scale.shape[:-1])
    if stack.ndim < scale.ndim or tuple(stack.shape[stack.ndim - scale.ndim : -1]) != positions:
        raise SettingError(
            f"a stack of the shape {tuple(stack.shape)}",
            needed=f"a last part of {[*positions, len(weight)]}",
            cause="the stack was made with another pos_slice, or from another cache",
            fix="give the pos_slice with which the stack was made",
        )
    wide = torch.promote_types(stack.dtype, torch.float32)
    return stack.to(wide) / scale.to(stack.device, wide) * weight.to(stack.device, wide)


def token_ids(
    tokens: int | Tensor, rows: Int[Tensor, " n"], batch: int, shape: tuple[int, ...], d_vocab: int
) -> Int[Tensor, " n"]:
    """The token meant at each position.

    Args:
        tokens: one id for all, one an item ``[batch]``, or one a position, in the shape of the positions.
        rows: the item of each position.
        batch: number of items.
        shape: of the positions in a stack.
        d_vocab: number of tokens.

    Raises:
        SettingError: text, another shape, or an id outside the vocabulary.
    """
    if isinstance(tokens, str):
        raise SettingError(
            f"tokens={tokens!r}",
            needed="token ids: an int, or a tensor",
            cause="a cache holds no tokenizer",
            fix="convert the text with model.processor.tokenizer, and choose which spelling (with or without a space)",
        )
    ids = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens)
    ids = ids.to(rows.device)
    if ids.dtype.is_floating_point or ids.dtype.is_complex or (ids.ndim and tuple(ids.shape) not in ((batch,), shape)):
        raise SettingError(
            f"tokens of the shape {tuple(ids.shape)} and type {ids.dtype}",
            needed=f"one integer id, [{batch}] (one an item), or {list(shape)} (one a position)",
        )
    if bool(((ids < 0) | (ids >= d_vocab)).any()):
        raise SettingError(
            f"token ids from {int(ids.min())} to {int(ids.max())}", needed=f"ids from 0 to {d_vocab - 1}"
        )
    if ids.ndim == 0:
        return torch.full((len(rows),), int(ids), dtype=torch.long, device=rows.device)
    return ids.long()[rows] if tuple(ids.shape) == (batch,) else ids.long().flatten()
