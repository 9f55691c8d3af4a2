"""Bootstrap that resamples whole groups; knows nothing of what the values mean."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from prismlens.stats.inputs import Clusters, clusters, generator, inside, item_values
from prismlens.stats.rates import Interval

DRAWS_AT_ONCE = 2**21
"""Numbers drawn in one go: bounds memory (16 MiB an array), and is part of what a seed means."""


def cluster_mean_interval(
    values: ArrayLike, groups: Iterable[Hashable], *, level: float = 0.95, n_resamples: int = 10_000, seed: int
) -> Interval:
    """Interval of a mean over items (accuracy, follow rate, margin) that resamples groups.

    Where no value differs there is nothing to resample and the interval has no width. For a rate of exactly 0 or 1,
    `proportion_interval` on the number of *groups* says how much that is worth.

    Args:
        values: one number or boolean per item.
        groups: one group per item.
        level: confidence level.
        n_resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        SettingError: lengths differ, no items, one group only, NaN, or a setting out of range.
    """
    inside("level", level, 0.0, 1.0)
    rng = generator(seed, n_resamples)
    cells = clusters(item_values("values", values), groups)
    low, high = bootstrap_ends(cells, level, n_resamples, rng)
    return Interval(cells.mean, low, high, level, cells.n, cells.n_groups)


def bootstrap_ends(cells: Clusters, level: float, n_resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """Ends of the expanded percentile interval of the mean over items.

    Percentile, because it keeps to the possible range and is exact where nothing varies, where the bias term of BCa is
    undefined; expanded, because the plain one is too narrow for few groups: the tails are cut at
    ``Phi(-sqrt(G / (G - 1)) * t(1 - alpha / 2, G - 1))`` (Hesterberg 2015, The American Statistician 69:371-386).
    """
    means = resampled_means(cells, n_resamples, rng)
    tail = expanded_tail(level, cells.n_groups)
    low, high = np.quantile(means, [tail, 1 - tail])
    # Rounding may put the ends a hair past the estimate where the values hardly vary; an error bar must hold its point.
    return min(float(low), cells.mean), max(float(high), cells.mean)


def expanded_tail(level: float, n_groups: int) -> float:
    """The share to cut from each tail of the resampled values; see `bootstrap_ends`."""
    quantile = math.sqrt(n_groups / (n_groups - 1)) * stats.t.ppf((1 + level) / 2, n_groups - 1)
    return float(stats.norm.cdf(-quantile))


def resampled_means(cells: Clusters, n_resamples: int, rng: np.random.Generator) -> Float[np.ndarray, " resample"]:
    """Means over items of samples of groups, drawn with replacement; group sizes vary, so so does the denominator."""
    rows = max(1, DRAWS_AT_ONCE // cells.n_groups)
    parts = []
    for start in range(0, n_resamples, rows):
        drawn = rng.integers(cells.n_groups, size=(min(rows, n_resamples - start), cells.n_groups))
        parts.append(cells.sums[drawn].sum(axis=1) / cells.sizes[drawn].sum(axis=1))
    return np.concatenate(parts)
