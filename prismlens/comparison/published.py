"""What can be said from published accuracies alone, without the items' records; knows only numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from prismlens.errors import SettingError
from prismlens.stats.inputs import generator, item_values


@dataclass(frozen=True)
class McNemarBounds:
    """Exact McNemar p-values that two published accuracies on the same items allow.

    Args:
        difference: right answers after minus before, in items.
        p_low: the p-value if as few items as possible changed.
        p_high: the p-value if as many as possible did.
        fewest: items that changed at least.
        most: items that may have changed.
        n: number of items.
    """

    difference: int
    p_low: float
    p_high: float
    fewest: int
    most: int
    n: int


def published_count(percent: float, n: int, *, digits: int = 1) -> int:
    """The number of right answers behind a printed percentage.

    Args:
        percent: as printed, for example 70.2.
        n: number of items.
        digits: printed after the point.

    Raises:
        SettingError: no count, or more than one, prints as this percentage.
    """
    # Half a unit of the last digit, and a hair for decimal fractions that have no exact binary form.
    room = 0.5 * 10.0**-digits + 1e-9
    counts = [k for k in range(n + 1) if abs(100 * k / n - percent) <= room]
    if len(counts) != 1:
        held = "none" if not counts else ", ".join(map(str, counts[:5]))
        raise SettingError(
            f"{percent} % of {n} items", needed="a percentage that one count of right answers prints as",
            cause=f"counts that print as this: {held}; the number of items or of printed digits is another",
        )  # fmt: skip
    return counts[0]


def mcnemar_bounds(before: int, after: int, n: int) -> McNemarBounds:
    """The smallest and the largest exact McNemar p-value for two counts of right answers on the same n items.

    Which items changed is not published, only by how many the gains g exceed the losses l. The p-value grows with the
    number that changed, ``g + l``: least where all changes go one way, most where every wrong answer that can turn
    right does.

    Args:
        before: right answers before.
        after: right answers after.
        n: number of items.

    Raises:
        SettingError: a count outside 0..n.
    """
    if not (0 <= before <= n and 0 <= after <= n and n > 0):
        raise SettingError(f"{before} and {after} right of {n} items", needed="counts between 0 and n")
    difference = after - before
    # Losses come from items that were right, gains from items that were wrong; their difference is fixed.
    losses = np.arange(max(0, -difference), min(before, n - after) + 1)
    gains = losses + difference
    changed = gains + losses
    # The exact test's two tails are alike at 1/2; where gains equal losses their sum passes 1.
    ps = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(gains, losses), changed, 0.5))
    return McNemarBounds(difference, float(ps.min()), float(ps.max()), int(changed.min()), int(changed.max()), n)


def binomial_draws(
    accuracies: ArrayLike, n: int, *, n_resamples: int = 5_000, seed: int
) -> Float[np.ndarray, "resample model"]:
    """Accuracies that n independent items might have given: Binomial(n, accuracy) / n, independently for each model.

    The parametric bootstrap of published accuracies. Two models' accuracies on the same items are correlated, which
    it cannot know: it is wider than a paired resampling of the items (`draw_resamples`).

    Args:
        accuracies: one a model, as fractions.
        n: number of items.
        n_resamples: draws.
        seed: of the draws.

    Raises:
        SettingError: an accuracy outside 0..1, no items, or a setting out of range.
    """
    values = item_values("accuracies", accuracies)
    if values.min() < 0 or values.max() > 1:
        raise SettingError(
            f"`accuracies` reach from {values.min():g} to {values.max():g}",
            needed="fractions in 0..1",
            fix="divide percentages by 100",
        )
    if n < 1:
        raise SettingError(f"`n` is {n}", needed="at least one item")
    return generator(seed, n_resamples).binomial(n, values, size=(n_resamples, len(values))) / n
