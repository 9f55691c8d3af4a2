"""Which of each item's positions are meant, and the shape that values take by item; knows no sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex, TypeAlias, cast

import torch
from jaxtyping import Int
from torch import Tensor

from prismlens.errors import RoleError

PosSlice: TypeAlias = int | slice | tuple[int | None, ...] | Sequence[int] | Tensor | None
"""Places among each item's selected positions: one, a slice (a tuple is its arguments), several, or all (None)."""


def pick(rows: Int[Tensor, " n"], batch: int, pos_slice: PosSlice) -> Int[Tensor, " m"]:
    """Indices into n selected positions: the places asked for in each item, items in order.

    Args:
        rows: the item of each position, ascending.
        batch: number of items.
        pos_slice: counts each item's own positions, from 0, or from -1 backwards.

    Raises:
        RoleError: some item does not have a place that is asked for, or a slice is empty in every item.
    """
    counts = rows.bincount(minlength=batch).tolist()
    chosen, start = [], 0
    for row, count in enumerate(counts):
        chosen += [start + place for place in _places(pos_slice, count, row)]
        start += count
    if not chosen:
        raise RoleError(f"pos_slice={pos_slice!r} selects nothing", needed=f"places below {max(counts, default=0)}")
    return torch.tensor(chosen, dtype=torch.long, device=rows.device)


def _places(pos_slice: PosSlice, count: int, row: int) -> Sequence[int]:
    """The places among `count`, counted from 0."""
    if pos_slice is None:
        return range(count)
    if isinstance(pos_slice, tuple):
        pos_slice = slice(*pos_slice)
    if isinstance(pos_slice, slice):
        return range(count)[pos_slice]
    asked = [pos_slice] if drops_axis(pos_slice) else list(pos_slice)  # type: ignore[arg-type]
    places = [index(cast(SupportsIndex, place)) for place in asked]
    beyond = [place for place in places if not -count <= place < count]
    if beyond:
        raise RoleError(
            f"pos_slice={pos_slice!r} asks for place {beyond[0]} in row {row}",
            needed=f"places from {-count} to {count - 1}: {count} positions of that item were kept",
            fix="keep more positions, or count from the other end",
        )
    return [place % count for place in places]


def drops_axis(pos_slice: PosSlice) -> bool:
    """Whether a single place is asked for, so that values lose the position axis, as under an integer index."""
    if isinstance(pos_slice, Tensor):
        return pos_slice.ndim == 0
    return hasattr(pos_slice, "__index__")


def by_item(values: Tensor, rows: Int[Tensor, " n"], batch: int, axis: int = 0) -> Tensor:
    """``[..., n, ...]`` as ``[..., batch, pos, ...]`` where every item has equally many positions, else as it is.

    Args:
        values: with the n positions on `axis`.
        rows: the item of each position.
        batch: number of items.
        axis: where the positions lie.
    """
    counts = rows.bincount(minlength=batch)
    return values.unflatten(axis, (batch, int(counts[0]))) if bool((counts == counts[0]).all()) else values


@dataclass(frozen=True, eq=False)
class Picked(Mapping[str, Tensor]):
    """Some rows of every value of another mapping, cut out when they are asked for.

    Args:
        whole: name -> values, positions first.
        index: name -> the rows to give.
    """

    whole: Mapping[str, Tensor]
    index: Callable[[str], Int[Tensor, " m"]]

    def __getitem__(self, name: str) -> Tensor:
        values = self.whole[name]
        return values[self.index(name).to(values.device)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)
