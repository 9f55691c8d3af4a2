"""One line of the table for a condition that ran under several seeds: items and seeds are both samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

import prismlens.stats as stats
from prismlens.stats import CrossedMean


def count(rows: pd.DataFrame) -> int:
    """Under how many seeds the rows of a condition were run; rows of earlier versions name none."""
    return len(set(rows["seed"].dropna())) if "seed" in rows else 0


def line(clean: pd.DataFrame, rows: pd.DataFrame, margin: float) -> dict[str, Any]:
    """What `CorruptionTest.frame` says of such a condition, on the items that ran under every seed.

    Args:
        clean: the clean run's rows, by item.
        rows: of the condition.
        margin: of equivalence.
    """
    seeds = sorted(rows.seed.unique())
    whole = rows.groupby("item").seed.nunique()
    items = [name for name in clean.index if whole.get(name, 0) == len(seeds)]
    n_clean, clean = len(clean), clean.loc[items]
    runs = {seed: rows[rows.seed == seed].set_index("item").loc[items] for seed in seeds}
    before = clean.correct.to_numpy(dtype=float)
    after = np.array([one.correct.to_numpy(dtype=float) for one in runs.values()])
    changed = [(one.choice.fillna("").to_numpy() != clean.choice.fillna("").to_numpy()).sum() for one in runs.values()]
    out: dict[str, Any] = {
        "n": len(items), "left_out": n_clean - len(items), "seeds": len(seeds),
        "changed": float(np.mean(changed)),
        "same_output": float(np.mean([one.same_output.sum() for one in runs.values()])),
    }  # fmt: skip
    if clean.group.nunique() < 2:
        return out
    groups = clean.group.to_numpy()
    out |= _statistics(before, after, groups, margin)
    if rows.donor.notna().any():
        out |= _follow(clean, runs, groups)
    return out


def _statistics(before: np.ndarray, after: np.ndarray, groups: np.ndarray, margin: float) -> dict[str, Any]:
    """Accuracy under the condition, its paired change, and the tests of that change."""
    change = stats.crossed_mean(after - before, groups)
    p_equivalent = change.equivalence_p(margin)
    counted = stats.minimum_detectable_effect(before, after.mean(0), groups)
    return {
        **_ends("accuracy", stats.crossed_mean(after, groups), "low", "high"),
        **_ends("change", change, "change_low", "change_high"), "p": change.p, "seed_sd": change.seed_sd,
        "gained": float((after > before).sum(1).mean()), "lost": float((after < before).sum(1).mean()),
        "p_equivalent": p_equivalent, "equivalent": p_equivalent < 0.05,
        "detectable": max(counted, change.detectable()),
    }  # fmt: skip


def _follow(clean: pd.DataFrame, runs: Mapping[Any, pd.DataFrame], groups: np.ndarray) -> dict[str, float]:
    """How often the answer becomes the donor's, stays the item's own, and is the donor's without any swap."""
    out: dict[str, float] = {}
    for kind in ("follow", "stay"):
        hits = np.array([(one.outcome == kind).to_numpy(dtype=float) for one in runs.values()])
        out |= _ends(kind, stats.crossed_mean(hits, groups), f"{kind}_low", f"{kind}_high")
    wrong = ~clean.correct.to_numpy(dtype=bool)
    already = [(clean.content_chosen.to_numpy() == one.donor_content.to_numpy()) & wrong for one in runs.values()]
    return out | {"follow_null": float(np.mean(already))}


def _ends(name: str, mean: CrossedMean, low: str, high: str) -> dict[str, float]:
    """The estimate and its ends, under their columns."""
    return {name: mean.estimate, low: mean.low, high: mean.high}
