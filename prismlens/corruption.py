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
from prismlens.interventions import Cut, DeleteKV, Edit, Identity, Mean, Noise, Structural, Swap, Zero
from prismlens.positions import latent
from prismlens.positions.role import Index
from prismlens.results import Results
from prismlens.sites import LATENT
from prismlens.trace import PrismModel
from prismlens.types import Item

MARGIN = 0.05
"""Default equivalence margin, in accuracy: a change inside it counts as none."""

VECTOR, SLOT, ELSEWHERE, CONTROL = "vector", "slot", "elsewhere", "control"
"""What a condition breaks: the vectors that are fed back, anything else about latents, other positions, or nothing."""
REMOVES = (Zero, Mean, Swap, DeleteKV, Cut)
"""Operations that can take away all that is particular to the item; the others (noise, scaling) leave some of it."""
COLUMNS = (
    "condition", "part", "removes", "n", "left_out", "accuracy", "low", "high", "change", "change_low", "change_high",
    "p", "p_holm", "gained", "lost", "p_mcnemar", "p_equivalent", "equivalent", "detectable", "changed", "same_output",
    "follow", "follow_low", "follow_high", "stay", "stay_low", "stay_high", "follow_null",
)  # fmt: skip
"""The columns of `CorruptionTest.frame`, in order; all are there whatever the conditions."""


def default_conditions(seed: int) -> dict[str, tuple[Edit, ...]]:
    """The conditions of `corruption_test`, by name; what each asks stands with its operation."""

    def one(op: Any, **where: Any) -> tuple[Edit, ...]:
        return (Edit(op, seed=seed, **where),)

    return {
        "no-op": one(Identity()),
        "zero": one(Zero()),
        "mean": one(Mean()),
        "noise 1 std": one(Noise(1.0, unit="std")),
        "noise 3 std": one(Noise(3.0, unit="std")),
        "noise 3 std, held": one(Noise(3.0, unit="std"), mode="held"),
        "noise norm-matched": one(Noise(1.0, unit="norm")),
        "swap": one(Swap()),
        "swap, other answer": one(Swap(donor="answer-in-options")),
        "slot: zero keys and values": one(Zero(), site="kv"),
        "slot: swap keys and values": one(Swap(), site="kv"),
        "slot: keys and values deleted": one(DeleteKV()),
    }


def part_of(edits: Sequence[Edit]) -> str:
    """Which question a condition answers, read off its edits: control, vector, slot, or elsewhere (not judged)."""
    if all(isinstance(edit.op, Identity) for edit in edits):
        return CONTROL
    broken = [edit.op.to if isinstance(edit.op, Cut) else edit.positions for edit in edits]
    if not all(role == latent or (isinstance(role, Index) and role.role == latent) for role in broken):
        return ELSEWHERE
    return VECTOR if all(edit.site == LATENT and not isinstance(edit.op, Structural) for edit in edits) else SLOT


def removes(edits: Sequence[Edit]) -> bool:
    """Whether a condition takes away all that is particular to the item, at every latent."""
    return any(
        isinstance(edit.op, REMOVES)
        and (edit.op.to if isinstance(edit.op, Cut) else edit.positions) == latent
        and getattr(edit.op, "layers", None) is None
        and getattr(edit.op, "donor", "") != "same-answer"
        for edit in edits
    )


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

        Columns: ``part`` (see `part_of`); ``removes`` (whether all that is particular to the item is gone);
        ``n, left_out`` (items, and those that the condition could not be applied to); ``accuracy, low, high``
        (bootstrap over groups); ``change, change_low, change_high, p`` (paired, by group, against the clean run of the
        same items), ``p_holm`` (over all conditions but controls), ``gained, lost, p_mcnemar`` (exact);
        ``p_equivalent, equivalent`` (two one-sided tests against the margin), ``detectable`` (smallest change found
        with power .8); ``changed`` (answers that differ from the clean ones), ``same_output`` (items whose text and
        option probabilities are bit-equal to the clean ones); where there are donors ``follow, stay`` with intervals,
        and ``follow_null`` (how often the clean answer is already the donor's).
        """
        by_name: dict[str, pd.DataFrame] = {
            str(name): rows for name, rows in self.results.rows.groupby("condition", sort=False)
        }
        clean = by_name.pop(CLEAN).set_index("item", drop=False)
        none: pd.DataFrame = self.results.rows.iloc[:0]
        names = self.results.manifest["conditions"]
        lines = [
            self._clean_line(clean),
            *(self._line(name, clean, by_name.get(name, none)) for name in names),
        ]
        frame = pd.DataFrame(lines, columns=COLUMNS).set_index("condition")
        tested = frame.index[frame.part.isin([VECTOR, SLOT, ELSEWHERE]) & frame.p.notna()]
        if len(tested):
            frame.loc[tested, "p_holm"] = stats.holm(frame.loc[tested, "p"].to_numpy(dtype=float))
        return frame

    def edits(self, condition: str) -> tuple[Edit, ...]:
        """The edits of a condition, read back from the manifest."""
        return tuple(Edit.from_json(text) for text in self.results.manifest["conditions"][condition])

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Condition -> ids of the items that it could not be applied to; conditions that lack none are not listed."""
        return dict(self.results.manifest["left_out"])

    @property
    def majority(self) -> stats.Majority:
        """The most frequent answer letter and its rate: what a model that knows nothing can reach."""
        rows = self.results.rows
        return stats.majority_rate(list(rows[rows.condition == CLEAN].answer))

    def save(self, folder: str | Path) -> Path:
        """Write rows and manifest; see `Results.save`."""
        return self.stored().save(folder)

    def stored(self) -> Results:
        """What `save` writes and `load` reads: the rows, and a manifest that has margin and seed too."""
        manifest = {**self.results.manifest, "corruption_test": {"margin": self.margin, "seed": self.seed}}
        return Results(self.results.rows, manifest)

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
        """One condition against the clean run of its items; what needs two groups is missing where there is one."""
        edits = self.edits(name)
        clean = clean.loc[list(rows.item)]
        line: dict[str, Any] = {
            "condition": name, "part": part_of(edits), "removes": removes(edits),
            "n": len(rows), "left_out": len(self.left_out.get(name, ())),
            "changed": int((clean.choice.fillna("").to_numpy() != rows.choice.fillna("").to_numpy()).sum()),
            "same_output": int(rows.same_output.sum()),
        }  # fmt: skip
        if rows.group.nunique() >= 2:
            line |= self._statistics(clean.correct.to_numpy(), rows.correct.to_numpy(), clean.group.to_numpy())
            if rows.donor.notna().any():
                line |= self._follow(clean, rows, clean.group.to_numpy())
        return line

    def _statistics(self, before: Any, after: Any, groups: Any) -> dict[str, Any]:
        """Accuracy under the condition, its paired change, and the tests of that change."""
        interval = stats.cluster_mean_interval(after, groups, seed=self.seed)
        change = stats.paired_difference(before, after, groups, seed=self.seed)
        exact = stats.mcnemar_exact(before, after)
        same = stats.equivalence(before, after, groups, margin=self.margin)
        return {
            "accuracy": interval.estimate, "low": interval.low, "high": interval.high,
            "change": change.estimate, "change_low": change.low, "change_high": change.high, "p": change.p,
            "gained": exact.gained, "lost": exact.lost, "p_mcnemar": exact.p,
            "p_equivalent": same.p, "equivalent": same.equivalent,
            "detectable": stats.minimum_detectable_effect(before, after, groups),
        }  # fmt: skip

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


def corruption_test(
    model: PrismModel,
    items: Sequence[Item],
    *,
    conditions: Mapping[str, Sequence[Edit]] | None = None,
    margin: float = MARGIN,
    seed: int = 0,
    on_missing: str = "raise",
    progress: bool = False,
) -> CorruptionTest:
    """Break the latents in several ways and compare with the clean run, item by item.

    Args:
        model: the model.
        items: with options and answers; those that share a scene share a group.
        conditions: name -> edits; `default_conditions` when not given.
        margin: what counts as no effect, in accuracy.
        seed: of noise, donors and bootstrap.
        on_missing: for items that a condition cannot be applied to, see `run_conditions`.
        progress: show a bar.

    Raises:
        DonorError: an item has no possible donor.
    """
    chosen = default_conditions(seed) if conditions is None else conditions
    results = run_conditions(model, items, chosen, on_missing=on_missing, progress=progress)
    return CorruptionTest(results, margin, seed)
