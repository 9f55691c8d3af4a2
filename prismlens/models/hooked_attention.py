"""Eager attention whose rotated queries and keys, scores and weights pass hook points; knows no hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import repeat_kv

from prismlens.models.hook_point import HookPoint
from prismlens.models.visibility import additive

HOOKED = "prismlens_hooked"
"""The attention implementation's name in transformers' registry."""
POINTS = ("hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")


def add_hook_points(attention: nn.Module) -> None:
    """Give an attention module the hook points that `hooked_attention` passes; the state dict stays as it is."""
    for name in POINTS:
        attention.add_module(name, HookPoint())


def hooked_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    value: Float[Tensor, "batch kv_head pos d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query pos"]]:
    """Attention with transformers' eager arithmetic, operation by operation, through the module's hook points.

    Queries and keys pass them as ``[batch, pos, head, d_head]``, keys with `n_key_value_heads` heads and only those of
    the forward's own columns. Scores and weights pass as ``[batch, head, query, key]``, scores after scaling and mask;
    where a key is hidden the score is the dtype's lowest number. A boolean mask (True: allowed) is taken too.

    A replaced key is kept in the key-value cache as well: `key` is the very tensor that the cache holds.
    """
    points: Any = module
    query = points.hook_rot_q(query.transpose(1, 2)).transpose(1, 2)
    # The copy is what a hook sees, so that a gradient through it survives the change in place.
    new = key[:, :, -query.shape[2] :]
    new.copy_(points.hook_rot_k(new.transpose(1, 2).clone()).transpose(1, 2))
    keys, values = (repeat_kv(one, points.num_key_value_groups) for one in (key, value))
    scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
    if attention_mask is not None:
        boolean = attention_mask.dtype == torch.bool
        scores = scores + (additive(attention_mask, scores.dtype) if boolean else attention_mask)
    scores = points.hook_attn_scores(scores)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = points.hook_pattern(F.dropout(weights, dropout, module.training))
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), weights


class Switch:
    """The attention implementation of a language model, switched to `hooked_attention` and back.

    Args:
        language: the language model; the implementation of a vision tower beside it stays as it is.
    """

    def __init__(self, language: nn.Module) -> None:
        self._config: Any = language.config
        self._own: str | None = None

    @property
    def on(self) -> bool:
        """Whether attention passes the hook points now."""
        return self._own is not None

    def turn_on(self) -> None:
        """From the next layer on, attention passes the hook points."""
        if self._own is None:
            ALL_ATTENTION_FUNCTIONS.register(HOOKED, hooked_attention)
            self._own, self._config._attn_implementation = self._config._attn_implementation, HOOKED

    def restore(self) -> None:
        """The implementation that was there before."""
        if self._own is not None:
            self._config._attn_implementation, self._own = self._own, None


@contextmanager
def attention_hooked(language: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While open, and where it is wanted, attention passes the hook points; afterwards it is as before, in any case."""
    switch = Switch(language)
    if wanted:
        switch.turn_on()
    try:
        yield
    finally:
        switch.restore()
