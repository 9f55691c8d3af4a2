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
    amount there is no spread: p is 0 if that amount is inside the margin and 1 if it is not. A p of exactly 0 from a
    few items is a statement about these items only; `minimum_detectable_effect` says what so few could have shown.

    Args:
        before: one number or boolean per item.
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
    p = float(stats.t.sf(distance / error, df)) if error > 0 else float(distance <= 0)
    reach = float(stats.t.ppf(1 - alpha, df)) * error
    return Equivalence(
        margin, p, p < alpha, mean, mean - reach, mean + reach, alpha, n=cells.n, n_groups=cells.n_groups
    )
