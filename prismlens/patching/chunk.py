"""One batch of pairs through all cells of a sweep: their rows, and which pairs are too close to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismlens.errors import PrismlensError
from prismlens.patching.attribution import attributed
from prismlens.patching.cells import Cell
from prismlens.patching.free import FreePatches
from prismlens.patching.held import HeldPatches
from prismlens.patching.metric import Measure
from prismlens.patching.places import Places
from prismlens.patching.runs import PairedRuns
from prismlens.patching.settings import Settings
from prismlens.patching.states import States, entry, replay
from prismlens.trace import PrismModel
from prismlens.trace.batch import REPLAY_TOLERANCE


@dataclass(eq=False)
class Chunk:
    """One batch of pairs.

    Args:
        model: the model.
        runs: of these pairs.
        places: of these pairs.
        cells: all of the sweep's.
        settings: how it runs.
    """

    model: PrismModel
    runs: PairedRuns
    places: Places
    cells: list[Cell]
    settings: Settings

    def rows(self) -> tuple[list[dict[str, Any]], list[str]]:
        """A row for every cell and pair, and the ids of the pairs whose two metrics are too close."""
        model, runs = self.model, self.runs
        width, names = runs.width, list(dict.fromkeys(cell.name for cell in self.cells))
        sides = (runs.corrupted, runs.clean) if self.settings.direction == "denoising" else (runs.clean, runs.corrupted)
        entries = [entry(layer) for layer in range(model.hf.n_layers)]
        held = self.settings.mode == "held"
        receiver = replay(model.engine, sides[0], width, [*names, *entries] if held else [])
        donor = replay(model.engine, sides[1], width, names)
        before = self._metrics(receiver)
        after = self._metrics(donor)
        kept = ((after - before).abs() >= self.settings.min_gap).nonzero().flatten().tolist()
        near = [runs.clean.items[row].id for row in range(len(before)) if row not in set(kept)]
        if not kept:
            return [], near
        places = self._only(kept)
        values = self._values(receiver, donor, places, before)
        return [self._row(*value, after[value[1]].item()) for value in values], near

    def _only(self, kept: Sequence[int]) -> Places:
        """The places, of the pairs that are measured only."""
        masks = torch.zeros_like(self.places.masks)
        masks[:, list(kept)] = self.places.masks[:, list(kept)]
        return Places(self.places.labels, masks)

    def _measure(self) -> Measure:
        runs = self.runs
        return Measure(self.settings.metric, runs.decisions, runs.clean.items, runs.corrupted.items)

    def _metrics(self, side: States) -> Tensor:
        """The metric of every pair on one side without any patch, float64."""
        if self.settings.mode == "held":
            logits = side.logits(self.model.engine, self.runs.source)
            return self._measure()(logits, range(len(logits))).detach().double()
        return self._free(side).metric(side.run, range(len(self.runs.decisions))).double()

    def _free(self, donor: States) -> FreePatches:
        receiver = self.runs.corrupted if self.settings.direction == "denoising" else self.runs.clean
        model = self.model
        return FreePatches(
            model.engine, receiver, donor, self.places, self._measure(), model.settings(), model.batch_size
        )

    def _values(
        self, receiver: States, donor: States, places: Places, before: Tensor
    ) -> list[tuple[int, int, float, float, float]]:
        """(cell, pair, metric of the receiver, under the patch, and that to first order); NaN where not asked for."""
        model, nan, method = self.model, float("nan"), self.settings.method
        slopes = None
        if method != "exact":
            cells, measure, source = self.cells, self._measure(), self.runs.source
            slopes = attributed(model.engine, receiver, donor, places, cells, measure, source).double()
        if method == "attribution":
            assert slopes is not None
            where = [
                (c, int(p)) for c, cell in enumerate(self.cells) for p in places.masks[cell.place].any(1).nonzero()
            ]
            return [(c, p, before[p].item(), nan, (before[p] + slopes[c, p]).item()) for c, p in where]
        if self.settings.mode == "held":
            engine, source = model.engine, self.runs.source
            patches = HeldPatches(engine, receiver, donor, places, self._measure(), source, model.batch_size)
        else:
            patches = self._free(donor)
            patches.places = places
        out = []
        for cell, pair, plain, patched in patches(self.cells):
            self._check(plain, before[pair].item(), float(before.abs().max()))
            change = nan if slopes is None else plain + slopes[cell, pair].item()
            out.append((cell, pair, plain, patched, change))
        return out

    def _check(self, again: float, once: float, scale: float) -> None:
        """Forwards that start in the middle, or have other rows, must agree with the whole one but for rounding."""
        limit = REPLAY_TOLERANCE.get(self.model.hf.dtype, 1e-4) * max(1.0, scale)
        if not abs(again - once) <= limit:
            raise PrismlensError(
                f"the metric without a patch is {again:.6g} in a batched forward and {once:.6g} in a whole one",
                needed=f"a difference of at most {limit:.2g}",
                cause="a metric that depends on other rows, or a model that is not deterministic",
                fix="let the metric treat each row by itself; call model.eval()",
            )

    def _row(self, cell: int, pair: int, own: float, patched: float, first: float, other: float) -> dict[str, Any]:
        """One row of the results."""
        where, item = self.cells[cell], self.runs.clean.items[pair]
        clean, corrupted = (other, own) if self.settings.direction == "denoising" else (own, other)
        return {
            "pair": item.id, "corrupted_item": self.runs.corrupted.items[pair].id, "group": item.group,
            "site": where.site, "layer": where.layer, "pos": self.places.labels[where.place], "head": where.head,
            "at": self.runs.decisions[pair].at, "clean": clean, "corrupted": corrupted, "patched": patched,
            "attributed": first,
        }  # fmt: skip
