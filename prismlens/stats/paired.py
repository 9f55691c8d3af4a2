"""Paired difference of two conditions on grouped items, with interval and p-value; knows nothing of metrics."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from prismlens.stats.bootstrap import DRAWS_AT_ONCE, bootstrap_ends
from prismlens.stats.inputs import clusters, generator, inside, paired_values

EXACT_GROUPS = 12
"""Up to so many groups with a difference, all sign patterns (4,096) are enumerated."""
ROUNDING = 1e-12
"""Sums closer than this, relative to the sum of all absolute differences, count as equal."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ``after - before`` over items.

    Args:
        estimate: the mean difference, in the metric's own unit.
        low: lower end of the bootstrap interval over groups.
        high: upper end.
        p: two-sided p-value of the sign-flip permutation test over groups.
        n: number of items.
        n_groups: number of groups.
        level: confidence level of the interval.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    n_groups: int
    level: float


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    groups: Iterable[Hashable],
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int,
) -> PairedDifference:
    """Mean paired difference, its interval and its p-value, all with the group as the unit.

    The interval is an expanded percentile bootstrap (see `bootstrap_ends`). Where no item changed, the difference, both
    ends, and 1 - p are exactly 0: read that beside `minimum_detectable_effect`, which says what could have been seen.

    Args:
        before: one number or boolean per item.
        after: the same items in the same order, under the other condition.
        groups: one group (scene) per item.
        level: confidence level of the interval.
        n_resamples: bootstrap samples, and random sign patterns where they are not enumerated.
        seed: of both.

    Raises:
        SettingError: lengths differ, no items, one group only, NaN, or a setting out of range.
    """
    inside("level", level, 0.0, 1.0)
    rng = generator(seed, n_resamples)
    differences = paired_values(before, after)
    cells = clusters(differences, groups)
    low, high = bootstrap_ends(cells, level, n_resamples, rng)
    p = sign_flip_p(cells.sums, float(np.abs(differences).sum()), n_resamples, rng)
    return PairedDifference(cells.mean, low, high, p, cells.n, cells.n_groups, level)


def sign_flip_p(sums: Float[np.ndarray, " group"], scale: float, n_resamples: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of the total under random signs of the groups' sums.

    The null is that the two conditions are exchangeable within every group. Exact up to `EXACT_GROUPS` groups with a
    difference; else ``(1 + hits) / (1 + n_resamples)``, which is never 0 (Phipson & Smyth 2010, SAGMB 9:39).

    Args:
        sums: sum of the differences of each group.
        scale: sum of all absolute differences; what `ROUNDING` is relative to.
        n_resamples: random sign patterns.
        rng: draws them.
    """
    tolerance = ROUNDING * scale
    moved = sums[np.abs(sums) > tolerance]
    if len(moved) == 0:
        return 1.0
    reached = abs(moved.sum()) - tolerance
    if len(moved) <= EXACT_GROUPS:
        patterns = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float(np.mean(np.abs(_totals(patterns, moved)) >= reached))
    rows = max(1, DRAWS_AT_ONCE // len(moved))
    hits = 0
    for start in range(0, n_resamples, rows):
        drawn = rng.integers(2, size=(min(rows, n_resamples - start), len(moved)), dtype=np.int8)
        hits += int((np.abs(_totals(drawn, moved)) >= reached).sum())
    return (1 + hits) / (1 + n_resamples)


def _totals(bits: np.ndarray, sums: Float[np.ndarray, " group"]) -> Float[np.ndarray, " pattern"]:
    """Total of the sums, each with the sign + where its bit is 1 and - where it is 0."""
    return 2 * (bits.astype(np.float64) @ sums) - sums.sum()
