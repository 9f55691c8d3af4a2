"""`run_with_cache` and its gradients: replays finished runs batch by batch and keeps what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.errors import EditError, ItemError, SettingError, SiteError
from prismlens.positions import Positions, Role
from prismlens.sites import axes
from prismlens.trace.batch import selected
from prismlens.trace.gradients import Metric
from prismlens.types import Item
from prismlens.unrolled import Unrolled, take

PosSlice = int | slice | Sequence[int] | tuple[int | None, ...]
"""What to take of each item's own positions, padding left out: one, several, or a slice (also as a tuple)."""

Replay = Callable[[Unrolled, Positions], tuple[dict[str, Tensor], Tensor]]
"""Replays one batch, and gives values by name and logits at the positions."""


@dataclass(frozen=True)
class Wanted:
    """What of a replay is kept, and how; see `PrismModel.run_with_cache`."""

    items: Sequence[Item]
    positions: Role | None = None
    pos_slice: PosSlice | None = None
    device: torch.device | str | None = None
    remove_batch_dim: bool = False
    heads: tuple[int, ...] | None = None
    logits: bool = True

    def __post_init__(self) -> None:
        if self.positions is not None and self.pos_slice is not None:
            raise SettingError(
                f"positions = {self.positions} and pos_slice = {self.pos_slice}", needed="one of them, or neither"
            )
        if self.remove_batch_dim and len(self.items) != 1:
            raise SettingError(f"remove_batch_dim = True for {len(self.items)} items", needed="a single item")

    def where(self, run: Unrolled) -> Positions:
        """The selected positions."""
        return selected(self.positions, run) if self.pos_slice is None else sliced(run, self.pos_slice)


def replay_in_batches(
    run: Unrolled, batch_size: int, wanted: Wanted, replay: Replay
) -> tuple[dict[str, Tensor], Tensor]:
    """Values by name and logits of all items, flat."""
    kept: dict[str, list[Tensor]] = {}
    for start in range(0, len(run.items), batch_size):
        part = take(run, slice(start, start + batch_size))
        values, logits = replay(part, wanted.where(part))
        for name, value in (*values.items(), ("", logits)):
            kept.setdefault(name, []).append(value if wanted.device is None else value.to(wanted.device))
    flat = {name: torch.cat(parts) for name, parts in kept.items()}
    return flat, flat.pop("")


def cached(
    values: dict[str, Tensor], logits: Tensor, run: Unrolled, wanted: Wanted, **about: Any
) -> tuple[Tensor, ActivationCache]:
    """Logits in the shape of the cache's values, and the cache; `about` are further arguments of it."""
    where, batched = wanted.where(run), not wanted.remove_batch_dim
    shaped = ActivationCache({"logits": logits}, where, run, has_batch_dim=batched)["logits"]
    return shaped, ActivationCache(values, where, run, has_batch_dim=batched, **about)


def stop_of(stop_at_layer: int | None, n_layers: int, metric: Metric | None) -> int | None:
    """The block before which a replay stops, counted from 0.

    Raises:
        SettingError: no such block, or a metric, which needs the logits.
    """
    if stop_at_layer is None:
        return None
    if not -n_layers <= stop_at_layer <= n_layers:
        raise SettingError(f"stop_at_layer = {stop_at_layer}", needed=f"from {-n_layers} to {n_layers}")
    if metric is not None:
        raise SettingError("stop_at_layer and a metric", needed="one of them", cause="there are no logits then")
    return stop_at_layer % n_layers if stop_at_layer < 0 else stop_at_layer


def sliced(run: Unrolled, pos_slice: PosSlice) -> Positions:
    """The positions that a slice takes of each item's own, padding left out.

    Raises:
        ItemError: an item has no such position.
    """
    rows: list[int] = []
    columns: list[int] = []
    if isinstance(pos_slice, tuple):
        pos_slice = slice(*pos_slice)
    for row, item in enumerate(run.items):
        own = run.valid[row].nonzero().flatten().tolist()
        try:
            chosen = own[pos_slice] if isinstance(pos_slice, slice) else [own[i] for i in _numbers(pos_slice)]
        except IndexError:
            chosen = []
        if not chosen:
            raise ItemError(
                f"pos_slice = {pos_slice!r} names no position of item {item.id!r}",
                needed=f"positions of a sequence of {len(own)}",
            )
        rows += [row] * len(set(chosen))
        columns += sorted(set(chosen))
    return Positions(torch.tensor(rows, device=run.device), torch.tensor(columns, device=run.device))


def refuse_vision(names: Sequence[str], wanted: Wanted) -> None:
    """Raise SiteError where positions are chosen of sites that have none."""
    inside = [name for name in names if axes(name)[0] != "batch"]
    if inside and (wanted.positions is not None or wanted.pos_slice is not None):
        raise SiteError(
            f"positions at {inside[0]!r}",
            needed="no positions: rows in the vision tower are patches, not positions of the sequence",
            fix="leave out positions, or the names of the vision tower",
        )


def refuse_heads(heads: Sequence[int] | None, names: Sequence[str], n_heads: int, metric: Metric | None) -> None:
    """Raise SettingError where heads are chosen that do not exist, or of sites without queries and keys."""
    if heads is None:
        return
    chosen = sorted(set(heads))
    if not chosen or chosen != list(heads) or not 0 <= chosen[0] <= chosen[-1] < n_heads:
        raise SettingError(f"heads = {list(heads)}", needed=f"different heads from 0 to {n_heads - 1}, in order")
    others = [name for name in names if axes(name) != axes("blocks.0.attn.hook_pattern")]
    if others or metric is not None:
        raise SettingError(
            f"heads = {chosen} {f'at {others[0]}' if others else 'with gradients'}",
            needed="pattern and attn_scores alone, without gradients",
            cause="these have a square for every head; other sites are small",
            fix="leave out heads, or read these sites in a call of their own",
        )


def refuse_return_type(return_type: str | None, metric: Metric | None) -> None:
    """Raise SettingError where the logits that are needed are not wanted."""
    if return_type not in ("logits", None) or (return_type is None and metric is not None):
        raise SettingError(
            f"return_type = {return_type!r}{' with a metric' if return_type is None else ''}",
            needed="'logits', or None where there is no metric",
            cause="a metric is computed from the logits" if return_type is None else "",
        )


def one_number(metric: Metric | None, incl_bwd: bool, batches: int) -> Metric | None:
    """The metric of a run with gradients, which may give a single number only where there is one batch.

    Raises:
        SettingError: gradients without a metric, or a metric without gradients.
    """
    if incl_bwd != (metric is not None):
        raise SettingError(
            f"incl_bwd = {incl_bwd} and {'no metric' if metric is None else 'a metric'}",
            needed="both, or neither",
            cause="a gradient is that of a number: metric=lambda logits: ..., one number an item",
        )
    if metric is None or batches == 1:
        return metric

    def checked(logits: Tensor) -> Tensor:
        number = metric(logits)
        if isinstance(number, Tensor) and number.ndim == 0:
            raise EditError(
                f"the metric gave a single number for one of {batches} batches",
                needed="one number an item, so that the batches do not matter",
                fix="return a tensor of shape [batch], or raise batch_size",
            )
        return number

    return checked


def _numbers(pos_slice: int | Sequence[int]) -> Sequence[int]:
    return [pos_slice] if isinstance(pos_slice, int) else pos_slice
