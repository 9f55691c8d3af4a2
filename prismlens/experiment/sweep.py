"""The passes of a sweep over its units: clean runs first, then conditions; what is finished is never run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prismlens.experiment.processes import Processes
from prismlens.experiment.progress import Progress
from prismlens.experiment.records import records
from prismlens.experiment.run_file import decode, encode
from prismlens.experiment.shards import Shards
from prismlens.experiment.unit import Ready, Units
from prismlens.experiment.variants import CLEAN, Variant
from prismlens.interventions import Cut, Edit, Swap, match_donors
from prismlens.trace import PrismModel, Run
from prismlens.trace.clean_values import CleanValues, split_by_item, wanted_values
from prismlens.trace.editing import BatchEdits
from prismlens.trace.prepared import prepared
from prismlens.trace.run import merge_runs
from prismlens.types import Item


@dataclass(eq=False)
class Sweep:
    """A sweep while it runs.

    Args:
        model: the model with its own edits.
        units: the plan at work.
        variants: conditions times seeds.
        on_missing: see `run_conditions`.
        shards: where finished units are kept.
        processes: who else works on it.
        progress: counts runs of one item.
    """

    model: PrismModel
    units: Units
    variants: Sequence[Variant]
    on_missing: str
    shards: Shards
    processes: Processes
    progress: Progress
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _targets: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    def run(self) -> tuple[list[dict[str, Any]], Run]:
        """The rows of all conditions, clean first, and the clean run."""
        unedited, values = self._unedited()
        clean = self._with_own_edits(unedited, values) if self.model.active_edits else unedited
        ready = [one for one in (self._ready(v, clean, unedited, values) for v in self.variants) if one.items]

        def rows(unit: int) -> bytes:
            found = {
                (one.variant.condition, one.variant.seed): records(
                    one.variant.condition, run, clean, one.donors, seed=one.variant.seed
                )
                for one, run in self.units.variants(unit, ready, unedited, self.progress.add)
            }
            self.units.release(unit)
            return json.dumps([found.get((one.condition, one.seed), []) for one in self.variants]).encode()

        per_unit = [json.loads(content) for content in self._each("rows.json", rows, len(self.variants))]
        out = records(CLEAN, clean, clean, {}, seed=None)
        for number in range(len(self.variants)):
            out += [row for unit in per_unit for row in unit[number]]
        return out, clean

    def _each(self, kind: str, work: Callable[[int], bytes], runs: int = 1) -> list[bytes]:
        """The finished parts of one pass, each made by one of the processes unless it is there.

        Args:
            kind: of part, with its file's ending.
            work: makes the part of a unit.
            runs: how many there are of every item.
        """
        names = [f"{unit:05d}-{kind}" for unit in range(len(self.units.plan.units))]
        for unit in self.units.share(self.processes):
            end = self.progress.done + runs * len(self.units.items_of(unit))
            if self.shards.has(names[unit]):
                self.progress.found(end - self.progress.done)
            else:
                self.shards.put(names[unit], work(unit))
                self.progress.add(end - self.progress.done)
        self.processes.wait()
        return [self.shards.get(name) for name in names]

    def _unedited(self) -> tuple[Run, CleanValues]:
        """The run of all items without any edit, and the clean values that edits need."""
        edits = [edit for variant in self.variants for edit in (*self.model.active_edits, *variant.edits)]
        wanted = wanted_values(edits, self.model.hf.n_layers)

        def work(unit: int) -> bytes:
            return encode(*self.units.clean(unit, wanted))

        runs, by_item = [], {name: {} for name in wanted}
        for content in self._each("clean.safetensors", work):
            run, values = self._decoded(content)
            runs.append(run)
            for name, value in values.items():
                by_item[name] |= split_by_item(value, name, wanted, run.unrolled)
        return merge_runs(runs), CleanValues(wanted, by_item)

    def _with_own_edits(self, unedited: Run, values: CleanValues) -> Run:
        """The clean run of a model that is edited already: with its own edits, and no others."""
        own = Variant(CLEAN, None, ())
        ready = self._prepared(own, self.units.items, unedited, values)

        def work(unit: int) -> bytes:
            ((_, run),) = self.units.variants(unit, [ready], unedited, self.progress.add)
            return encode(run, {})

        return merge_runs([self._decoded(content)[0] for content in self._each("own.safetensors", work)])

    def _decoded(self, content: bytes) -> tuple[Run, dict[str, Tensor]]:
        return decode(content, self.units.items, self.model.hf.device)

    def _ready(self, variant: Variant, clean: Run, unedited: Run, values: CleanValues) -> Ready:
        """A variant with all that its edits need; items that it cannot be applied to are left out and listed."""
        items = self.units.items
        able = with_positions(clean, variant.edits) if self.on_missing == "drop" else list(items)
        # Under "raise" every item was found a donor before anything ran.
        kept = with_donors(able, variant.edits, self.on_missing) if self.on_missing == "drop" else able
        if len(kept) < len(items):
            gone = {item.id for item in items} - {item.id for item in kept}
            self.left_out[variant.condition] = sorted(gone.union(self.left_out.get(variant.condition, ())))
        if not kept:
            return Ready(variant, BatchEdits((), self.model.hf.n_layers), frozenset())
        return self._prepared(variant, kept, unedited.take(able), values)

    def _prepared(self, variant: Variant, kept: Sequence[Item], reference: Run, values: CleanValues) -> Ready:
        """Donors, targets, and clean values, measured over the whole reference."""
        edits, by_id = (*self.model.active_edits, *variant.edits), {item.id: item for item in reference.items}
        shared = prepared(
            edits, kept, self.model.hf.n_layers, self.model.hf.config.text.num_attention_heads,
            opens=self.model.opens, reference=reference, read=values.cache, targets=lambda: self._targets_of(kept),
        )  # fmt: skip
        swaps = [edit for edit in variant.edits if isinstance(edit.op, Swap)]
        donors = {name: by_id[donor] for edit in swaps for name, donor in shared.donors[edit].items()}
        return Ready(variant, shared, frozenset(item.id for item in kept), donors)

    def _targets_of(self, items: Sequence[Item]) -> Tensor:
        """What the items' latents stand for; computed once for the same items."""
        key = tuple(item.id for item in items)
        if key not in self._targets:
            self._targets[key] = self.model.targets(items)
        return self._targets[key]


def with_positions(clean: Run, edits: Sequence[Edit]) -> list[Item]:
    """The items in which every position that the edits name exists."""
    lacking = torch.zeros(len(clean.items), dtype=torch.bool, device=clean.latents.device)
    for edit in edits:
        for role in (edit.op.to, edit.op.by) if isinstance(edit.op, Cut) else (edit.positions,):
            lacking |= role.missing(clean.unrolled)
    return [item for item, gone in zip(clean.items, lacking.tolist(), strict=True) if not gone]


def with_donors(items: Sequence[Item], edits: Sequence[Edit], on_missing: str) -> list[Item]:
    """The items that every swap of a condition finds a donor for."""
    dropped: set[str] = set()
    for edit in edits:
        if isinstance(edit.op, Swap):
            dropped.update(match_donors(items, edit.op, seed=edit.seed, on_missing=on_missing).dropped)
    return [item for item in items if item.id not in dropped]
