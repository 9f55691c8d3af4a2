"""What the per-item rows of a model say: by this package's rules, and by those of the published test; runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from mechanisms import PAPER
from scipy import stats as scipy_stats

from prismlens.corruption import SLOT, VECTOR, CorruptionTest
from prismlens.experiment import CLEAN
from prismlens.results import Results
from prismlens.verdict import judge

SHOWN = (CLEAN, "zero", "swap", "slot: keys and values deleted")
POINTS = 0.05
"""The published test calls latents bypassed where corruption moves accuracy by at most about four points; one more is
allowed here, as it is the margin of this package's test."""
CHANCE = 0.25
"""What the published probe compares with."""


def tested(record: Mapping[str, Any], rows: pd.DataFrame, *, published: bool) -> CorruptionTest:
    """The test of one protocol, out of the run that the two share; the clean run belongs to both."""

    def of_protocol(name: str) -> bool:
        return name.startswith(PAPER) == published

    kept = rows[(rows.condition == CLEAN) | rows.condition.map(of_protocol)]
    manifest = {key: {n: v for n, v in record[key].items() if of_protocol(n)} for key in ("conditions", "left_out")}
    return CorruptionTest(Results(kept, manifest), record["margin"], record["seed"])


def fair(record: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """The verdict's words and reasons, the accuracies behind them, and the reliance.

    Reliance is the loss of accuracy under swapped vectors as a share of what could be lost, clean accuracy minus the
    majority rate, which is taken as known: the interval is that of the loss.
    """
    test = tested(record, rows, published=False)
    frame, majority = test.frame(), test.majority.rate
    said = [judge(frame, part, majority, test.margin) for part in (VECTOR, SLOT)]
    lines = {name: frame.loc[name] for name in (*SHOWN, "no-op")}
    swap, room = lines["swap"], float(lines[CLEAN].accuracy) - majority
    return {
        "said": [one.word for one in said], "reasons": [one.reason for one in said], "majority": majority,
        "accuracy": {name: [float(lines[name][end]) for end in ("accuracy", "low", "high")] for name in SHOWN},
        "noop_same": int(lines["no-op"].same_output),
        "lost": {str(need): _lost(rows, need) for need in (True, False)},
        "reliance": [float(-swap[end] / room) for end in ("change", "change_high", "change_low")] if room > 0 else None,
    }  # fmt: skip


def _lost(rows: pd.DataFrame, needs: bool) -> list[int]:
    """Of the items that need the vectors, or do not: how many are right, and how many of these zeros make wrong."""
    of = rows[rows.needs == needs].set_index("item")
    right = of[(of.condition == CLEAN) & (of.correct == 1)].index
    zeroed = of[of.condition == "zero"].correct.loc[right]
    return [len(right), int((zeroed == 0).sum())]


def published(record: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """The changes of accuracy under the published conditions, and what is said of them by their size alone.

    The probe's word follows from where (b), the last latent, stands: nearer to chance than to (a), the answer's source,
    or not.
    """
    by_name = {str(name): one.set_index("item").correct.astype(float) for name, one in rows.groupby("condition")}
    clean = by_name[CLEAN]
    changes = {
        name.removeprefix(PAPER): float((one - clean.loc[one.index]).mean())
        for name, one in by_name.items() if name.startswith(PAPER)
    }  # fmt: skip
    probe = record["paper_probe"]
    return {
        "changes": changes,
        "said": "bypassed" if max(map(abs, changes.values())) <= POINTS else "used",
        "probe_said": None
        if probe is None
        else "bypassed"
        if probe["b"] - CHANCE < probe["a"] - probe["b"]
        else "used",
    }


def ranks(truth: Sequence[float], estimate: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    return float(scipy_stats.spearmanr(truth, estimate).statistic)
