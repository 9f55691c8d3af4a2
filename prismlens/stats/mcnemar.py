"""Exact McNemar test of two conditions on the same items; knows nothing of groups."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike
from scipy import stats

from prismlens.stats.inputs import item_outcomes, same_length


@dataclass(frozen=True)
class McNemar:
    """Outcome of the exact McNemar test.

    Args:
        gained: items wrong before and right after.
        lost: items right before and wrong after.
        p: two-sided exact p-value; 1 where no item changed.
        n: number of items, changed or not.
    """

    gained: int
    lost: int
    p: float
    n: int


def mcnemar_exact(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Test whether two conditions differ in accuracy on the same, independent items (McNemar 1947, Psychometrika 12).

    Given the number of items that changed, gains are Binomial(1/2) under the null; the p-value is two-sided and exact,
    hence conservative. Where items share scenes, prefer `paired_difference`, which knows groups.

    Args:
        before: right (true) or wrong, one per item.
        after: the same items in the same order, under the other condition.

    Raises:
        SettingError: lengths differ, no items, or values other than true and false.
    """
    first, second = item_outcomes("before", before), item_outcomes("after", after)
    same_length(before=first, after=second)
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    changed = gained + lost
    p = float(stats.binomtest(gained, changed, 0.5).pvalue) if changed else 1.0
    return McNemar(gained, lost, p, len(first))
