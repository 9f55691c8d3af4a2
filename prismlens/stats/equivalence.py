"""Two one-sided tests that a paired difference lies within a margin; does not choose the margin."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from numpy.typing import ArrayLike
from scipy import stats

from prismlens.stats.inputs import clusters, inside, paired_values


@dataclass(frozen=True)
class Equivalence:
    """Outcome of an equivalence test.

    Args:
        margin: the largest difference that counts as none, in the metric's own unit.
        p: the larger of the two one-sided p-values; small means "the difference lies within the margin".
        equivalent: True where ``p < alpha``.
        estimate: the mean of ``after - before`` over items.
        low: lower end of the ``1 - 2 alpha`` interval; equivalent means that both ends are within the margin.
        high: upper end.
        alpha: size of the test.
        n: number of items.
        n_groups: number of groups.
    """

    margin: float
    p: float
    equivalent: bool
    estimate: float
    low: float
    high: float
    alpha: float
    n: int
    n_groups: int


def equivalence(
    before: ArrayLike, after: ArrayLike, groups: Iterable[Hashable], *, margin: float, alpha: float = 0.05
) -> Equivalence:
    """Test the claim "no effect larger than the margin" (two one-sided t tests; Schuirmann 1987, JPB 15:657-680).

    The standard error is cluster-robust with ``n_groups - 1`` degrees of freedom. Where every item differs by the same
    amount d there is no spread to go by. If nothing in the metric's unit interval can move by more than 1, a mean of at
    least the margin needs a share of ``(margin - |d|) / (1 - |d|)`` of groups that differ by more, and that none of n
    groups shows it has at most the probability ``((1 - margin) / (1 - |d|)) ** n``: that is p, and its bound the
    interval. Ten items of which none changed are thus no proof; 59 groups are, at a margin of .05.

    Args:
        before: one number or boolean per item, from 0 to 1 where all items differ by the same amount.
        after: the same items in the same order, under the other condition.
        groups: one group (scene) per item.
        margin: positive, in the metric's own unit (0.05 is five points of accuracy); choose it before looking.
        alpha: size of each one-sided test.

    Raises:
        SettingError: the margin is not positive, lengths differ, no items, one group only, NaN, or alpha out of range.
    """
    inside("margin", margin, 0.0, math.inf)
    inside("alpha", alpha, 0.0, 0.5)
    cells = clusters(paired_values(before, after), groups)
    mean, error, df = cells.mean, cells.standard_error, cells.n_groups - 1
    distance = margin - abs(mean)  # the nearer bound decides: its one-sided p-value is the larger one
    if error > 0:
        p, reach = float(stats.t.sf(distance / error, df)), float(stats.t.ppf(1 - alpha, df)) * error
    else:
        p, reach = without_spread(abs(mean), margin, alpha, cells.n_groups)
    return Equivalence(
        margin, p, p < alpha, mean, mean - reach, mean + reach, alpha, n=cells.n, n_groups=cells.n_groups
    )


def without_spread(amount: float, margin: float, alpha: float, n_groups: int) -> tuple[float, float]:
    """p and half the interval where all groups differ by the same amount, of a metric that goes from 0 to 1."""
    if amount >= margin or margin > 1:  # a margin above 1 is that of another metric, about which nothing is known
        return float(amount >= margin), 0.0
    return ((1 - margin) / (1 - amount)) ** n_groups, (1 - amount) * (1 - alpha ** (1 / n_groups))
