"""One unit of a sweep: its prompts once, then every variant on them, some together in a batch; writes no records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from prismlens.experiment.plan import CACHE_BYTES, Plan
from prismlens.experiment.processes import Processes
from prismlens.experiment.variants import Variant
from prismlens.interventions import Edit, Skip
from prismlens.models.loop_settings import LoopSettings
from prismlens.models.prefix import Prefix, gather
from prismlens.trace import PrismModel, Run
from prismlens.trace.clean_values import Wanted, read_clean
from prismlens.trace.editing import BatchEdits
from prismlens.trace.joint import (
    JointEdits,
    Part,
    decode_batch,
    held_rows,
    prefill_batch,
    prompt_is_shared,
    rows_are_alike,
)
from prismlens.trace.skipping import shortened
from prismlens.types import Item


@dataclass(frozen=True, eq=False)
class Ready:
    """A variant with all that its edits need.

    Args:
        variant: the variant.
        edits: the model's own edits and the variant's; donors, means and spreads looked up.
        items: ids of the items that it applies to.
        donors: item id -> donor, where the variant swaps.
    """

    variant: Variant
    edits: BatchEdits
    items: frozenset[str]
    donors: dict[str, Item] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether the clean run's latents are fed."""
        return any(edit.mode == "held" for edit in self.edits.edits)

    def part(self, items: Sequence[Item], first: int = 0) -> Part:
        """The variant's rows among consecutive ones that hold the items, with edits that have seen no forward yet."""
        rows = tuple(first + row for row, item in enumerate(items) if item.id in self.items)
        return Part(rows, replace(self.edits, touched={}, hidden={}))


@dataclass(eq=False)
class Units:
    """Runs units, and keeps their prefixes between two passes while they fit.

    Args:
        model: the model; its own edits are not applied here, `Ready.edits` has them.
        items: all items of the sweep.
        plan: how they are cut.
    """

    model: PrismModel
    items: Sequence[Item]
    plan: Plan
    _kept: dict[int, Prefix] = field(default_factory=dict)

    @property
    def settings(self) -> LoopSettings:
        """How the model decodes."""
        return self.model.settings()

    def items_of(self, unit: int) -> Sequence[Item]:
        """A unit's items."""
        return self.items[self.plan.units[unit]]

    def share(self, processes: Processes) -> range:
        """The numbers of the units that fall to this process."""
        return range(processes.rank, len(self.plan.units), processes.count)

    def one_condition_at_a_time_if_needed(self) -> Plan:
        """The plan, with one slot where a row's numbers would depend on the slot that it is in."""
        if self.plan.slots > 1 and not rows_are_alike(self.model.engine, self._prefix(0), self.plan.slots):
            self.plan = replace(self.plan, slots=1)
        return self.plan

    def clean(self, unit: int, wanted: Wanted) -> tuple[Run, dict[str, Tensor]]:
        """The unit without any edit, and clean values of sites; every slot of the batch holds the same."""
        prefix, n = self._prefix(unit), len(self.items_of(unit))
        copies = gather(self.model.engine.hf, [(prefix, range(n))] * self.plan.slots)
        run = decode_batch(self.model.engine, copies, self.settings, JointEdits()).take_rows(range(n))
        return run, read_clean(self.model.engine, run.unrolled, wanted, prefix.vision)

    def variants(
        self, unit: int, ready: Sequence[Ready], clean: Run, done: Callable[[int], object]
    ) -> Iterator[tuple[Ready, Run]]:
        """Every variant that applies to some of the unit's items, with the run of those items.

        Args:
            unit: its number.
            ready: the variants.
            clean: a run without edits that holds the unit's items.
            done: told after each batch how many runs of one item are finished.
        """
        items = self.items_of(unit)
        fitting = [one for one in ready if one.part(items).rows]
        if not fitting:
            return
        prefix, clean = self._prefix(unit), clean.take(items)
        for together in _batches(fitting, self.plan.slots):
            parts, run = self._together(unit, prefix, together, clean)
            for one, part in zip(together, parts, strict=True):
                done(len(part.rows))
                yield one, run.take_rows(part.rows)

    def release(self, unit: int) -> None:
        """Forget the unit's prefix: nothing will ask for it again."""
        self._kept.pop(unit, None)

    def _together(self, unit: int, prefix: Prefix, together: Sequence[Ready], clean: Run) -> tuple[list[Part], Run]:
        """One decode batch: a variant a slot; slots that are left over hold the unedited prompts."""
        items, n = self.items_of(unit), len(clean.items)
        settings = shortened(self.settings, self.model.hf.config, together[0].edits.edits)
        sources, parts = [prefix] * self.plan.slots, []
        for slot, one in enumerate(together):
            here = one.part(items)
            if not prompt_is_shared(here, prefix.run):
                here = one.part(items)
                prompt = self.model.processor(items)
                sources[slot] = prefill_batch(self.model.engine, prompt, settings, JointEdits([here]), prefix)
            parts.append(Part(tuple(slot * n + row for row in here.rows), here.edits))
        fed = [row for one, part in zip(together, parts, strict=True) if one.held for row in part.rows]
        held = held_rows(clean.unrolled, self.plan.slots, fed)
        start = gather(self.model.engine.hf, [(source, range(n)) for source in sources])
        return parts, decode_batch(self.model.engine, start, settings, JointEdits(parts), held)

    def _prefix(self, unit: int) -> Prefix:
        """The unit's prompts after their forward without edits: kept from before, or run (again)."""
        if unit not in self._kept:
            prompt = self.model.processor(self.items_of(unit))
            prefix = prefill_batch(self.model.engine, prompt, self.settings, JointEdits())
            if sum(one.n_bytes for one in self._kept.values()) + prefix.n_bytes > CACHE_BYTES:
                return prefix
            self._kept[unit] = prefix
        return self._kept[unit]


def _batches(ready: Sequence[Ready], slots: int) -> Iterator[list[Ready]]:
    """The variants that decode together: those that skip the same latents, at most one a slot."""
    by_length: dict[tuple[Edit, ...], list[Ready]] = {}
    for one in ready:
        skips = tuple(edit for edit in one.edits.edits if isinstance(edit.op, Skip))
        by_length.setdefault(skips, []).append(one)
    for alike in by_length.values():
        yield from (alike[start : start + slots] for start in range(0, len(alike), slots))
