"""The rows of a corruption test and the table computed from them; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import prismlens.stats as stats
from prismlens.corruption import seeded
from prismlens.corruption.conditions import CONTROL, ELSEWHERE, SLOT, VECTOR, bit_equal, part_of, removes
from prismlens.errors import ResultsError
from prismlens.experiment import CLEAN
from prismlens.interventions import Edit
from prismlens.markup import block, interval_table, title
from prismlens.results import Results

MARGIN = 0.05
"""Default equivalence margin, in accuracy: a change inside it counts as none."""

COLUMNS = (
    "condition", "part", "removes", "n", "left_out", "accuracy", "low", "high", "change", "change_low", "change_high",
    "p", "p_holm", "gained", "lost", "p_mcnemar", "p_equivalent", "equivalent", "detectable", "changed", "same_output",
    "follow", "follow_low", "follow_high", "stay", "stay_low", "stay_high", "follow_null", "bit_equal", "seeds",
    "seed_sd",
)  # fmt: skip
"""The columns of `CorruptionTest.frame`, in order; all are there whatever the conditions."""
SHOWN = {
    "condition": "", "part": "", "n": ".0f", "accuracy": ".3f", "change": "+.3f", "p_holm": ".4f", "changed": ".0f",
    "follow": ".2f",
}  # fmt: skip
"""The columns that a notebook shows, and how."""


@dataclass(frozen=True, eq=False)
class CorruptionTest:
    """The rows of a corruption test, and the statistics computed from them.

    Args:
        results: per-item rows and manifest; see `run_conditions`.
        margin: equivalence margin, in accuracy.
        seed: of the bootstrap.
        controls: names of the conditions that stand beside the others: not judged, and outside the correction.
    """

    results: Results
    margin: float = MARGIN
    seed: int = 0
    controls: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """One line a condition, computed from the rows.

        Columns: ``part`` (see `part_of`); ``removes`` (whether all that is particular to the item is gone);
        ``n, left_out`` (items, and those that the condition could not be applied to); ``accuracy, low, high``
        (bootstrap over groups); ``change, change_low, change_high, p`` (paired, by group, against the clean run of the
        same items), ``p_holm`` (over all conditions but controls), ``gained, lost, p_mcnemar`` (exact);
        ``p_equivalent, equivalent`` (two one-sided tests against the margin), ``detectable`` (smallest change found
        with power .8); ``changed`` (answers that differ from the clean ones), ``same_output`` (items whose text and
        option probabilities are bit-equal to the clean ones); where there are donors ``follow, stay`` with intervals,
        and ``follow_null`` (how often the clean answer is already the donor's). ``bit_equal``: whether nothing may
        differ at all, in which case ``same_output`` must be ``n`` (see `broken_controls`).

        ``seeds``: under how many a condition ran. Where they are several, means are over items and seeds, intervals and
        p-values take both for samples (`stats.crossed_mean`), counts of items are means over seeds, there is no
        McNemar test (which wants one pair an item), and ``seed_sd`` is the standard deviation of the seeds' changes.
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

    @property
    def broken_controls(self) -> dict[str, int]:
        """Condition -> rows that differ from the clean run and must not, bit for bit; empty where all is well."""
        rows = self.results.rows
        wrong = rows.condition[~rows.same_output.astype(bool)].value_counts()
        names = self.results.manifest["conditions"]
        return {name: int(wrong[name]) for name in names if name in wrong and bit_equal(self.edits(name))}

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

    def _repr_html_(self) -> str:
        named = {"low": "accuracy_low", "high": "accuracy_high"}
        lines = self.frame().reset_index().rename(columns=named).to_dict("records")
        about = self.results.manifest
        return block(
            title("Corruption test", f"{about['model']}, {len(about['items'])} items, margin {self.margin:g}"),
            interval_table(lines, SHOWN),
        )

    def save(self, folder: str | Path) -> Path:
        """Write rows and manifest; see `Results.save`."""
        return self.stored().save(folder)

    def stored(self) -> Results:
        """What `save` writes and `load` reads: the rows, and a manifest that has margin, seed and controls too."""
        settings = {"margin": self.margin, "seed": self.seed, "controls": list(self.controls)}
        return Results(self.results.rows, {**self.results.manifest, "corruption_test": settings})

    @classmethod
    def load(cls, folder: str | Path) -> CorruptionTest:
        """Read back what `save` wrote; every statistic is recomputed from the rows."""
        results = Results.load(folder)
        settings = results.manifest.get("corruption_test")
        if not isinstance(settings, dict):
            raise ResultsError(f"{str(folder)!r} holds other results", needed="a saved corruption test")
        return cls(results, **{**settings, "controls": tuple(settings.get("controls", ()))})

    def _clean_line(self, clean: pd.DataFrame) -> dict[str, Any]:
        interval = stats.cluster_mean_interval(clean.correct.to_numpy(), clean.group, seed=self.seed)
        return {
            "condition": CLEAN, "part": CLEAN, "n": len(clean), "accuracy": interval.estimate,
            "low": interval.low, "high": interval.high,
        }  # fmt: skip

    def _line(self, name: str, clean: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
        """One condition against the clean run of its items; what needs two groups is missing where there is one."""
        edits = self.edits(name)
        line: dict[str, Any] = {
            "condition": name, "part": CONTROL if name in self.controls else part_of(edits), "removes": removes(edits),
            "bit_equal": bit_equal(edits),
        }  # fmt: skip
        if seeded.count(rows) > 1:
            return line | seeded.line(clean, rows, self.margin)
        clean = clean.loc[list(rows.item)]
        line |= {
            "n": len(rows), "left_out": len(self.left_out.get(name, ())), "seeds": 1,
            "changed": int((clean.choice.fillna("").to_numpy() != rows.choice.fillna("").to_numpy()).sum()),
            "same_output": int(rows.same_output.sum()),
        }  # fmt: skip
        if rows.group.nunique() >= 2:
            line |= self._statistics(clean.correct.to_numpy(), rows.correct.to_numpy(), clean.group.to_numpy())
            if rows.donor.notna().any() and not line["bit_equal"]:
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
