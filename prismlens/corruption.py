"""The corruption test: does breaking the latents change the answers? Conditions, and their paired statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import prismlens.stats as stats
from prismlens.errors import ResultsError
from prismlens.experiment import CLEAN, run_conditions
from prismlens.interventions import DeleteKV, Edit, Identity, Noise, Swap, Zero
from prismlens.results import Results
from prismlens.trace import PrismModel
from prismlens.types import Item

MARGIN = 0.05
"""Default equivalence margin, in accuracy: a change inside it counts as none."""

VECTOR, SLOT, CONTROL = "vector", "slot", "control"
FOLLOW = "swap, other answer"


def default_conditions(seed: int) -> dict[str, tuple[Edit, ...]]:
    """The conditions of `corruption_test`, by name; what each asks stands with its operation."""

    def one(op: Any, **where: Any) -> tuple[Edit, ...]:
        return (Edit(op, seed=seed, **where),)

    return {
        "no-op": one(Identity()),
        "zero": one(Zero()),
        "noise 1 std": one(Noise(1.0, unit="std")),
        "noise 3 std": one(Noise(3.0, unit="std")),
        "noise norm-matched": one(Noise(1.0, unit="norm")),
        "swap": one(Swap()),
        FOLLOW: one(Swap(donor="answer-in-options")),
        "swap, held": one(Swap(), mode="held"),
        "slot: zero keys and values": one(Zero(), site="kv"),
        "slot: swap keys and values": one(Swap(), site="kv"),
        "slot: keys and values deleted": one(DeleteKV()),
    }


PART = {"no-op": CONTROL}
"""Which question a condition belongs to: the control, the slot (names that begin so), or else the vector."""


@dataclass(frozen=True, eq=False)
class CorruptionTest:
    """The rows of a corruption test, and the statistics computed from them.

    Args:
        results: per-item rows and manifest; see `run_conditions`.
        margin: equivalence margin, in accuracy.
        seed: of the bootstrap.
    """

    results: Results
    margin: float = MARGIN
    seed: int = 0

    def frame(self) -> pd.DataFrame:
        """One line a condition, computed from the rows.

        Columns: ``accuracy, low, high`` (bootstrap over groups); ``change, change_low, change_high, p`` (paired, by
        group), ``p_holm`` (over the conditions other than the control), ``gained, lost, p_mcnemar`` (exact),
        ``p_equivalent, equivalent`` (two one-sided tests against the margin), ``detectable`` (smallest change found
        with power .8), ``changed`` (answers that differ from the clean ones), ``follow, stay`` with intervals where
        there are donors, ``follow_null`` (how often the clean answer is already the donor's).
        """
        by_name = {str(name): rows for name, rows in self.results.rows.groupby("condition", sort=False)}
        clean = by_name.pop(CLEAN)
        names = list(by_name)
        lines = [self._clean_line(clean), *(self._line(name, clean, by_name[name]) for name in names)]
        frame = pd.DataFrame(lines).set_index("condition")
        tested = [name for name in names if part_of(name) != CONTROL]
        frame.loc[tested, "p_holm"] = stats.holm(frame.loc[tested, "p"].to_numpy(dtype=float))
        return frame

    @property
    def majority(self) -> stats.Majority:
        """The most frequent answer letter and its rate: what a model that knows nothing can reach."""
        rows = self.results.rows
        return stats.majority_rate(list(rows[rows.condition == CLEAN].answer))

    def save(self, folder: str | Path) -> None:
        """Write rows and manifest; see `Results.save`."""
        manifest = {**self.results.manifest, "corruption_test": {"margin": self.margin, "seed": self.seed}}
        Results(self.results.rows, manifest).save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> CorruptionTest:
        """Read back what `save` wrote; every statistic is recomputed from the rows."""
        results = Results.load(folder)
        settings = results.manifest.get("corruption_test")
        if not isinstance(settings, dict):
            raise ResultsError(f"{str(folder)!r} holds other results", needed="a saved corruption test")
        return cls(results, **settings)

    def _clean_line(self, clean: pd.DataFrame) -> dict[str, Any]:
        interval = stats.cluster_mean_interval(clean.correct.to_numpy(), clean.group, seed=self.seed)
        return {
            "condition": CLEAN, "part": CLEAN, "n": len(clean), "accuracy": interval.estimate,
            "low": interval.low, "high": interval.high,
        }  # fmt: skip

    def _line(self, name: str, clean: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
        """The statistics of one condition against the clean run of the same items."""
        before, after, groups = clean.correct.to_numpy(), rows.correct.to_numpy(), clean.group.to_numpy()
        interval = stats.cluster_mean_interval(after, groups, seed=self.seed)
        change = stats.paired_difference(before, after, groups, seed=self.seed)
        exact = stats.mcnemar_exact(before, after)
        same = stats.equivalence(before, after, groups, margin=self.margin)
        line = {
            "condition": name, "part": part_of(name), "n": len(rows), "accuracy": interval.estimate,
            "low": interval.low, "high": interval.high, "change": change.estimate, "change_low": change.low,
            "change_high": change.high, "p": change.p, "gained": exact.gained, "lost": exact.lost,
            "p_mcnemar": exact.p, "p_equivalent": same.p, "equivalent": same.equivalent,
            "detectable": stats.minimum_detectable_effect(before, after, groups),
            "changed": int((clean.choice.fillna("").to_numpy() != rows.choice.fillna("").to_numpy()).sum()),
        }  # fmt: skip
        if rows.donor.notna().any():
            line |= self._follow(clean, rows, groups)
        return line

    def _follow(self, clean: pd.DataFrame, rows: pd.DataFrame, groups: Any) -> dict[str, float]:
        """How often the answer becomes the donor's, stays the item's own, and is the donor's without any swap."""
        kinds = {"follow": rows.outcome == "follow", "stay": rows.outcome == "stay"}
        out: dict[str, float] = {}
        for kind, hits in kinds.items():
            interval = stats.cluster_mean_interval(hits.to_numpy(), groups, seed=self.seed)
            out |= {kind: interval.estimate, f"{kind}_low": interval.low, f"{kind}_high": interval.high}
        already = clean.content_chosen.to_numpy() == rows.donor_content.to_numpy()
        out["follow_null"] = float((already & ~clean.correct.to_numpy()).mean())
        return out


def part_of(condition: str) -> str:
    """Which question a condition belongs to: ``control``, ``slot`` or ``vector``."""
    return PART.get(condition, SLOT if condition.startswith(SLOT) else VECTOR)


def corruption_test(
    model: PrismModel,
    items: Sequence[Item],
    *,
    conditions: Mapping[str, Sequence[Edit]] | None = None,
    margin: float = MARGIN,
    seed: int = 0,
    progress: bool = False,
) -> CorruptionTest:
    """Break the latents in several ways and compare with the clean run, item by item.

    Args:
        model: the model.
        items: with options and answers; those that share a scene share a group.
        conditions: name -> edits; `default_conditions` when not given. A name that begins with ``"slot"`` is
            counted as a test of the slot, the others as tests of the vector.
        margin: what counts as no effect, in accuracy.
        seed: of noise, donors and bootstrap.
        progress: show a bar.

    Raises:
        DonorError: an item has no possible donor.
    """
    chosen = default_conditions(seed) if conditions is None else conditions
    return CorruptionTest(run_conditions(model, items, chosen, progress=progress), margin, seed)
