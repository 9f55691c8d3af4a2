"""The smallest accuracy difference that a paired design could have found; knows nothing of what was found."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from numpy.typing import ArrayLike
from scipy import stats

from prismlens.errors import SettingError
from prismlens.stats.inputs import Clusters, clusters, inside, item_values, paired_values


def minimum_detectable_effect(
    before: ArrayLike, after: ArrayLike, groups: Iterable[Hashable], *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Accuracy difference (a fraction: 0.04 is four points) that would be found with the given power.

    The larger of two bounds:

    - from the spread: ``(t(1 - alpha / 2) + t(power)) * standard error`` (Bloom 1995, Evaluation Review 19:547-556),
      with the cluster-robust standard error of the observed differences and ``n_groups - 1`` degrees of freedom;
    - from counting, which holds even where no item changed: no exact paired test rejects before `fewest_changes`
      groups changed, all in one direction (6 at alpha = 0.05). See `_counting_bound`. For many independent items it is
      7.9 / n at the usual alpha and power: the bare 6 / n would be found only a little more than half the time.

    Args:
        before: right or wrong, one per item (fractions, as means over seeds, are accepted).
        after: the same items in the same order, under the other condition.
        groups: one group (scene) per item.
        alpha: size of the two-sided test.
        power: wanted probability of finding the effect.

    Returns:
        The effect; infinity where there are so few groups that no effect, however large, could reach alpha.

    Raises:
        SettingError: values outside 0..1, lengths differ, no items, one group only, NaN, or a setting out of range.
    """
    inside("alpha", alpha, 0.0, 1.0)
    inside("power", power, 0.0, 1.0)
    for name, values in (("before", before), ("after", after)):
        vector = item_values(name, values)
        if vector.min() < 0 or vector.max() > 1:
            raise SettingError(
                f"`{name}` reaches from {vector.min():g} to {vector.max():g}",
                needed="outcomes between 0 (wrong) and 1 (right): the result is in points of accuracy",
                fix="give whether the items were right, not their log-probabilities",
            )
    cells = clusters(paired_values(before, after), groups)
    df = cells.n_groups - 1
    multiplier = stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df)
    return max(float(multiplier) * cells.standard_error, _counting_bound(cells, alpha, power))


def fewest_changes(alpha: float) -> int:
    """Smallest number k of changes, all in one direction, whose exact two-sided p-value ``2 / 2^k`` is below alpha."""
    inside("alpha", alpha, 0.0, 1.0)
    return math.floor(1 - math.log2(alpha)) + 1


def _counting_bound(cells: Clusters, alpha: float, power: float) -> float:
    """Effect at which enough groups change, all in one direction, with the given probability.

    The number of changed groups is Binomial(G, q), so q solves ``P(Binomial(G, q) >= k) = power``, a quantile of
    Beta(k, G - k + 1) (Clopper & Pearson 1934, Biometrika 26:404-413). Items that change independently of each other at
    the rate d change a group of the mean size m with probability ``q = 1 - (1 - d)^m``, which gives d. Items of a scene
    that change together need a larger effect; this is a lower bound.
    """
    needed = fewest_changes(alpha)
    if cells.n_groups < needed:
        return math.inf
    changed_groups = float(stats.beta.ppf(power, needed, cells.n_groups - needed + 1))
    return 1 - (1 - changed_groups) ** (cells.n_groups / cells.n)
