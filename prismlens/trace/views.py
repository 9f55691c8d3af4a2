"""How the tensor at a module's end becomes what a hook name promises, and back; pure functions, no trace in sight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Around:
    """What a view may need besides the tensor.

    Args:
        module: whose end the tensor is at.
        owner: the module around it: of a projection, the attention that knows its head size.
        source: the module's input; None for views that do not need it.
        units: for every merged unit of patches, in the order in which the vision tower has them, its number in the
            processor's order; None outside the tower.
        scale: of a norm, where it was replaced: what its input is divided by then.
    """

    module: nn.Module
    owner: nn.Module
    source: Tensor | None = None
    units: Int[Tensor, " unit"] | None = None
    scale: Float[Tensor, "batch pos 1"] | None = None


@dataclass(frozen=True)
class View:
    """A way to read and write.

    Args:
        split: the module's tensor -> the value, positions on the second axis.
        join: the value -> the module's tensor.
        derived: the value is computed from the module's input, so that `join` gives back the module's own tensor only
            up to rounding: positions where nothing was changed keep the tensor that they have.
    """

    split: Callable[[Tensor, Around], Tensor]
    join: Callable[[Tensor, Around], Tensor]
    derived: bool = False


def same(tensor: Tensor, around: Around) -> Tensor:
    """As it is."""
    return tensor


def split_heads(tensor: Tensor, around: Around) -> Float[Tensor, "batch pos head d_head"]:
    """The last axis as heads; as many as fit, so that keys and values have their own number."""
    owner: Any = around.owner
    return tensor.unflatten(-1, (-1, owner.head_dim))


def join_heads(value: Float[Tensor, "batch pos head d_head"], around: Around) -> Tensor:
    """Heads side by side on the last axis."""
    return value.flatten(-2)


def swap_queries(tensor: Tensor, around: Around) -> Tensor:
    """``[batch, head, query, key]`` and ``[batch, query, head, key]``, one into the other."""
    return tensor.transpose(1, 2)


def normalized(tensor: Tensor, around: Around) -> Float[Tensor, "batch pos d_model"]:
    """A norm's input over its scale, before the weight, with the norm's own arithmetic."""
    source, module = _source(around), _any(around.module)
    wide = source.float()
    if around.scale is not None:
        return (wide / around.scale).to(source.dtype)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return wide.to(source.dtype)


def from_normalized(value: Float[Tensor, "batch pos d_model"], around: Around) -> Tensor:
    """A norm's output: the weight times the value."""
    return _any(around.module).weight * value


def scale(tensor: Tensor, around: Around) -> Float[Tensor, "batch pos 1"]:
    """What a norm divides its input by: the root of the mean square plus epsilon, in single precision."""
    if around.scale is not None:
        return around.scale
    module = _any(around.module)
    return (_source(around).float().pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()


def from_scale(value: Float[Tensor, "batch pos 1"], around: Around) -> Tensor:
    """A norm's output when it divides by the value."""
    source = _source(around)
    return from_normalized((source.float() / value).to(source.dtype), around)


def result(tensor: Tensor, around: Around) -> Float[Tensor, "batch pos head d_model"]:
    """What each head alone adds to the residual stream: its z through its part of the output projection."""
    heads = split_heads(_source(around), around)
    weight = _any(around.module).weight.unflatten(1, heads.shape[-2:])
    return torch.einsum("bphd,mhd->bphm", heads, weight)


def from_result(value: Float[Tensor, "batch pos head d_model"], around: Around) -> Tensor:
    """The heads' sum, and the projection's bias where it has one."""
    bias = _any(around.module).bias
    return value.sum(-2) if bias is None else value.sum(-2) + bias


def patches(tensor: Float[Tensor, "patch d"], around: Around) -> Float[Tensor, "patch d"]:
    """Patches in the processor's order; the tower has them window by window."""
    units = _units(around)
    return tensor.unflatten(0, (len(units), -1))[units.argsort()].flatten(0, 1)


def to_windows(value: Float[Tensor, "patch d"], around: Around) -> Float[Tensor, "patch d"]:
    """Patches window by window."""
    units = _units(around)
    return value.unflatten(0, (len(units), -1))[units].flatten(0, 1)


def _source(around: Around) -> Tensor:
    assert around.source is not None
    return around.source


def _units(around: Around) -> Tensor:
    assert around.units is not None
    return around.units


def _any(module: nn.Module) -> Any:
    return module


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "whole": View(same, same),
        "heads": View(split_heads, join_heads),
        "queries": View(swap_queries, swap_queries),
        "normalized": View(normalized, from_normalized, derived=True),
        "scale": View(scale, from_scale, derived=True),
        "result": View(result, from_result, derived=True),
        "patches": View(patches, to_windows),
    }
)
"""Views by the names that sites give them."""


def written(raw: Tensor, old: Tensor, new: Tensor, view: View, around: Around) -> Tensor:
    """The module's tensor after the value went from `old` to `new`."""
    joined = view.join(new, around)
    if not view.derived:
        return joined
    changed = (new != old).flatten(2).any(-1, keepdim=True)
    return torch.where(changed, joined, raw)
