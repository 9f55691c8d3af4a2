"""Rates and their intervals where every item stands alone; knows nothing of groups or of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from prismlens.errors import SettingError
from prismlens.stats.inputs import inside


@dataclass(frozen=True)
class Interval:
    """A mean and how far it may be off.

    Args:
        estimate: the mean over items.
        low: lower end.
        high: upper end.
        level: confidence level, for example 0.95.
        n: number of items.
        n_groups: number of groups that were resampled; ``n`` where items stand alone.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    n_groups: int


class Majority(NamedTuple):
    """The rate of always guessing the commonest label, and that label."""

    rate: float
    label: Hashable


@runtime_checkable
class HasEnds(Protocol):
    """Anything with a lower and an upper end."""

    @property
    def low(self) -> float:
        """The lower end."""
        ...

    @property
    def high(self) -> float:
        """The upper end."""
        ...


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of independent items (Wilson 1927, JASA 22:209-212).

    Unlike a bootstrap it has a width when nothing, or everything, succeeded.

    Args:
        successes: how many of the items succeeded.
        n: how many items there were.
        level: confidence level.

    Raises:
        SettingError: no items, more successes than items, or a level outside 0..1.
    """
    inside("level", level, 0.0, 1.0)
    if n < 1 or not 0 <= successes <= n:
        raise SettingError(
            f"{successes} successes among {n} items",
            needed="n >= 1 and 0 <= successes <= n",
            cause="a filter removed every item" if n < 1 else "a rate was given instead of a count",
        )
    ends = np.asarray(proportion_confint(int(successes), int(n), alpha=1 - level, method="wilson"), dtype=np.float64)
    rate = successes / n
    # At 0 and at 1 that end is the rate itself, but for rounding.
    return Interval(rate, min(float(ends[0]), rate), max(float(ends[1]), rate), level, int(n), int(n))


def majority_rate(labels: Iterable[Hashable]) -> Majority:
    """Rate of the commonest label: what a probe or a model must beat. Of equally common labels the first one seen wins.

    Raises:
        SettingError: there are no labels, or one is None or NaN.
    """
    counts = Counter(labels)
    if not counts:
        raise SettingError("`labels` is empty", needed="at least one label", cause="a filter removed every item")
    missing = [label for label in counts if label is None or label != label]  # only NaN differs from itself
    if missing:
        raise SettingError(
            f"`labels` holds {missing[0]}", needed="a label for every item", fix="drop those items first"
        )
    label, count = counts.most_common(1)[0]
    return Majority(count / counts.total(), label)


def covers(interval: HasEnds, value: float) -> bool:
    """True where the value lies in the interval, ends included."""
    return bool(interval.low <= value <= interval.high)
