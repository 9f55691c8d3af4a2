"""Activations by hook name at chosen positions; knows nothing of how they were read, or of what they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import EllipsisType
from typing import Any, TypeVar, overload

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from prismlens.cache.norms import as_text, norm_lines
from prismlens.cache.readout import Readout
from prismlens.cache.selection import Picked, PosSlice, by_item, drops_axis, pick
from prismlens.errors import SettingError, SiteError
from prismlens.markup import block, table
from prismlens.positions import Positions
from prismlens.showing import Shown, show
from prismlens.sites import LATENT, axes, canonical, get_act_name
from prismlens.unrolled import Unrolled

Kind = TypeVar("Kind", bound="Activations")
"""The class of a cache: what is made from one is of the same class."""


@dataclass(frozen=True, eq=False)
class Activations(Mapping[str, Tensor]):
    """``cache["blocks.3.hook_resid_post"]`` or ``cache["resid_post", 3]`` -> ``[batch, pos, ...]`` or ``[n, ...]``.

    Where every item has the same number of selected positions the value is ``[batch, pos, ...]``; otherwise it is
    ``[n, ...]``, one row a selected position, in the order of `positions`. The site of the vectors that are fed back
    has values at latents only, see `where`; where none is selected the cache does not hold it. The cache of some of
    each item's selected positions is ``cache[..., pos_slice]``: of the last with -1, as an axis of length 1.

    `pos_slice` counts each item's own selected positions, so that -1 is the last whatever their number.

    Args:
        values_by_name: name -> ``[n, ...]``.
        positions: rows and columns of the n selected positions.
        unrolled: the sequences that they belong to.
        readout: the weights that decompositions need; None for a cache that is only looked at.
        manifest: JSON values that say how the values came about (model, weights, versions, settings).
        edited: names of the sites that edits wrote to.
        has_batch_dim: False after `remove_batch_dim`.
    """

    values_by_name: Mapping[str, Shaped[Tensor, "n ..."]]
    positions: Positions
    unrolled: Unrolled
    readout: Readout | None = None
    manifest: Mapping[str, object] = field(default_factory=dict)
    edited: tuple[str, ...] = ()
    has_batch_dim: bool = True

    @overload
    def __getitem__(self, key: str | tuple[str, int] | tuple[str, int, str]) -> Tensor: ...
    @overload
    def __getitem__(self: Kind, key: tuple[EllipsisType, PosSlice]) -> Kind: ...
    def __getitem__(self, key: Any) -> Any:  # a check of `self` as a Mapping would read an item, and so never end
        """The activation of that name, or of that short name and layer; after ``...`` the cache of those places."""
        if isinstance(key, tuple) and key and key[0] is ...:
            return self._sliced(key[1])
        name = full_name(key)
        if axes(name)[0] != "batch":
            return self.flat(name)  # the vision tower has patches, and neither items nor positions on an axis
        value, rows = self.flat(name), self.where(name).rows
        shaped = self._shaped(value, rows)
        by_head = axes(name)[1] == "head" and shaped.ndim - value.ndim == int(self.has_batch_dim)
        # Squares of attention have their heads before the queries.
        return shaped.transpose(-3, -2) if by_head else shaped

    def flat(self, name: str) -> Shaped[Tensor, "n ..."]:
        """The activation with one row for each position of `where`, whatever their number in each item."""
        name = full_name(name)
        if name not in self:
            at_latents = name in self.values_by_name
            raise SiteError(
                f"the cache holds no {name!r}",
                needed=f"one of {', '.join(self)}",
                cause="none of the positions is a latent" if at_latents else "names_filter left it out",
                fix="choose latents" if at_latents else "run again with a names_filter that lets it through",
            )
        return self.values_by_name[name]

    def where(self, name: str) -> Positions:
        """The positions at which the site has values: all of them, but latents only where latents are fed back.

        In the vision tower, which has no positions, the columns are the numbers of an item's patches or image tokens.
        """
        name = canonical(name.removesuffix("_grad"))
        if axes(name)[0] != "batch":
            return self._patches(len(self.values_by_name[name]))
        if name != LATENT:
            return self.positions
        fed = self._fed()
        return Positions(self.positions.rows[fed], self.positions.columns[fed], self.positions.dropped)

    def __contains__(self, key: object) -> bool:
        """Whether there are values of that name; `Mapping` itself would wait for a KeyError."""
        try:
            name = full_name(key)
        except (SiteError, TypeError, AttributeError):
            return False
        return name in self.values_by_name and len(self.where(name)) > 0

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.values_by_name if len(self.where(name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def show(self, name: str) -> None:
        """The mean norm of a site at each layer and kind of position: a table in a notebook, text elsewhere.

        Args:
            name: a hook name, or its short form for all layers (``"resid_post"``).

        Raises:
            SiteError: the cache has no such site.
        """
        headings, lines = norm_lines(self, name)
        show(Shown(block(table(headings, lines, shown=len(lines)))), as_text(headings, lines))

    def remove_batch_dim(self: Kind) -> Kind:
        """The cache of a single item with values ``[pos, ...]`` and stacks ``[component, pos, ...]``.

        Raises:
            SettingError: there are several items.
        """
        if self._batch != 1:
            raise SettingError(
                f"remove_batch_dim on a cache of {self._batch} items", needed="one item", fix="run one item alone"
            )
        return replace(self, has_batch_dim=False)

    def to(self: Kind, device: torch.device | str) -> Kind:
        """The cache with every value on a device; the weights in `readout` stay where the model has them."""
        every = {one.name: getattr(self.unrolled, one.name) for one in fields(self.unrolled)}
        moved = {name: value.to(device) for name, value in every.items() if isinstance(value, Tensor)}
        positions = Positions(self.positions.rows.to(device), self.positions.columns.to(device), self.positions.dropped)
        values = {name: self.values_by_name[name].to(device) for name in self}
        return replace(self, values_by_name=values, positions=positions, unrolled=replace(self.unrolled, **moved))

    def end(self, layer: int | None) -> int:
        """The number of blocks before `layer`; None and -1 are the end."""
        n_layers = self._weights.n_layers
        if layer is None or layer == -1:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise SiteError(f"layer = {layer}", needed=f"0 to {n_layers} (exclusive), or -1 or None for the end")
        return layer

    def with_readout(self: Kind, readout: Readout) -> Kind:
        """The cache with a model's matrices, which files do not hold.

        Raises:
            SettingError: it is another model's.
        """
        own = self.readout.weights if self.readout is not None else ""
        if own and readout.weights and own != readout.weights:
            raise SettingError(
                f"the readout of the weights {readout.weights}",
                needed=f"that of the weights {own}, which the cache was made with",
                fix="load the model whose name stands in cache.manifest",
            )
        return replace(self, readout=readout)

    def require(self, names: Sequence[str]) -> None:
        """Raise a SiteError that says which names_filter would do, where the cache lacks some of the names."""
        missing = [name for name in names if name not in self]
        if missing:
            rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise SiteError(
                f"the cache holds no {', '.join(map(repr, missing[:3]))}{rest}",
                needed=f"{len(names)} sites: {', '.join(short_names(names))}",
                cause="names_filter left them out",
                fix=f"run again with names_filter={short_names([*self, *names])}",
            )

    @property
    def _weights(self) -> Readout:
        if self.readout is None:
            raise SiteError(
                "the cache has no readout", needed="the model's norms", fix="cache.with_readout(model.readout)"
            )
        return self.readout

    @property
    def _batch(self) -> int:
        return self.unrolled.shape[0]

    def _patches(self, count: int) -> Positions:
        """Item and number of each row of a site in the vision tower."""
        tokens = self.unrolled.grids.prod(1)
        each = tokens * (count // int(tokens.sum()))
        rows = torch.arange(len(each), device=each.device).repeat_interleave(each)
        starts = (each.cumsum(0) - each)[rows]
        return Positions(rows, torch.arange(count, device=each.device) - starts)

    def _fed(self) -> Bool[Tensor, " n"]:
        """Where the selected positions are latents."""
        return self.unrolled.steps[self.positions.rows, self.positions.columns] >= 0

    def _sliced(self: Kind, pos_slice: PosSlice) -> Kind:
        """The cache of some places among each item's selected positions."""
        if pos_slice is None:
            return self
        index, fed = pick(self.positions.rows, self._batch, pos_slice), self._fed()
        latents = (fed.cumsum(0) - 1)[index][fed[index]]

        def rows_of(name: str) -> Int[Tensor, " m"]:
            return latents if name == LATENT else index

        positions = Positions(self.positions.rows[index], self.positions.columns[index], self.positions.dropped)
        return replace(self, values_by_name=Picked(self.values_by_name, rows_of), positions=positions)

    def _shaped(self, values: Tensor, rows: Int[Tensor, " n"], axis: int = 0, pos_slice: PosSlice = None) -> Tensor:
        """Positions on `axis` by item, where that is possible, without the axes that are not wanted."""
        out = by_item(values, rows, self._batch, axis)
        if drops_axis(pos_slice):
            out = out.squeeze(axis + 1)
        return out if self.has_batch_dim else out.squeeze(axis)


def short_names(names: Sequence[str]) -> list[str]:
    """Hook names as a names_filter takes them: those of blocks once, without the block's number."""
    short = [name.split(".", 2)[2].removeprefix("hook_") if name.startswith("blocks.") else name for name in names]
    return list(dict.fromkeys(short))


def full_name(key: Any) -> str:
    """The name that a key stands for, in the table's own form; a gradient's has ``_grad`` after that of its site."""
    if isinstance(key, str):
        base = key.removesuffix("_grad")
        return canonical(base) + key[len(base) :]
    return get_act_name(*key)
