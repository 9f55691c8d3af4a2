"""Intervals over items and over seeds, and correlations over a few variants; knows no file and no page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and how many seeds are in it."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return "–" if np.isnan(self.mean) else f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def over_items_and_seeds(frames: Sequence[pd.DataFrame], column: str) -> Estimate:
    """The mean of a column over items and seeds; every resample draws scenes, and seeds, with replacement.

    Args:
        frames: one a seed, of the same items; ``group`` says which items share a scene.
        column: of each frame; items where it is missing count for nothing.
    """
    own = [frame for frame in frames if column in frame]
    if not own:
        return Estimate(np.nan, np.nan, np.nan, 0)
    sums = np.stack([frame.groupby("group", sort=True)[column].sum().to_numpy() for frame in own])
    counts = np.stack([frame.groupby("group", sort=True)[column].count().to_numpy() for frame in own])
    rng = np.random.default_rng(0)
    scenes, seeds = sums.shape[1], len(own)
    weights = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=RESAMPLES)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    means = np.einsum("rg,sg,rs->r", weights, sums, drawn) / np.einsum("rg,sg,rs->r", weights, counts, drawn)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), seeds)


def over_seeds(values: Sequence[float]) -> str:
    """Mean and range over seeds, for what is one number a model."""
    own = [value for value in values if np.isfinite(value)]
    if not own:
        return "–"
    ends = "" if len(own) == 1 else f" ({min(own):.3f} to {max(own):.3f})"
    return f"{np.mean(own):.3f}{ends}"


@dataclass(frozen=True)
class Correlation:
    """Of two numbers over a few variants.

    Args:
        pearson, spearman: of the means over seeds.
        low, high: 95 % bootstrap over seeds within each variant; equal to `pearson` where there is one seed.
        p: exact, two-sided, over all orders of the variants.
        apart: lowest and highest Pearson with one variant left out.
        cluster: Pearson with a variable that only says which variants have several stages.
        n: variants.
    """

    pearson: float
    spearman: float
    low: float
    high: float
    p: float
    apart: tuple[float, float]
    cluster: float
    n: int


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; NaN where one side does not vary, which is then no news and no warning."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def correlate(pairs: Mapping[str, np.ndarray], staged: Sequence[str]) -> Correlation | None:
    """How two numbers go together over variants; None with fewer than three.

    Args:
        pairs: variant -> ``[seed, 2]``.
        staged: the variants with several stages.
    """
    if len(pairs) < 3:
        return None
    x, y = np.array([own.mean(0) for own in pairs.values()]).T
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        again = [own[rng.integers(len(own), size=len(own))].mean(0) for own in pairs.values()]
        drawn.append(pearson(*np.array(again).T))
    observed = pearson(x, y)
    orders = [abs(pearson(x, y[list(order)])) for order in itertools.permutations(range(len(y)))]
    left = [pearson(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Correlation(
        observed, float(stats.spearmanr(x, y).statistic), float(low), float(high),
        float(np.mean(np.array(orders) >= abs(observed) - 1e-12)), (min(left), max(left)),
        pearson(np.array([float(name in staged) for name in pairs]), y), len(pairs),
    )  # fmt: skip
