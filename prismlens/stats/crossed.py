"""Mean over items that were run under several seeds, where items and seeds are both samples; knows no metric."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from prismlens.errors import SettingError
from prismlens.stats.equivalence import without_spread
from prismlens.stats.inputs import clusters, inside, item_values


@dataclass(frozen=True)
class CrossedMean:
    """A mean over items and seeds, and how far it may be off for other items and for other seeds.

    Args:
        estimate: the mean.
        low: lower end of the t interval.
        high: upper end.
        p: two-sided, that the mean is 0; 1 where nothing differs from 0.
        standard_error: of the mean.
        df: its degrees of freedom.
        seed_sd: standard deviation of the seeds' own means.
        level: confidence level.
        n: number of items.
        n_groups: number of groups.
        n_seeds: number of seeds.
    """

    estimate: float
    low: float
    high: float
    p: float
    standard_error: float
    df: float
    seed_sd: float
    level: float
    n: int
    n_groups: int
    n_seeds: int

    def equivalence_p(self, margin: float) -> float:
        """The larger p of the two one-sided tests that the mean lies within the margin; see `equivalence`."""
        inside("margin", margin, 0.0, math.inf)
        if not self.standard_error:
            return without_spread(abs(self.estimate), margin, 0.05, self.n_groups)[0]
        return float(stats.t.sf((margin - abs(self.estimate)) / self.standard_error, self.df))

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """The mean that would be found with this power, from the spread alone (Bloom 1995; 0 without any spread)."""
        return float(stats.t.ppf(1 - alpha / 2, self.df) + stats.t.ppf(power, self.df)) * self.standard_error


def crossed_mean(
    values: Float[np.ndarray, "seed item"], groups: Iterable[Hashable], *, level: float = 0.95
) -> CrossedMean:
    """Mean of items that all ran under the same seeds, with groups and seeds as crossed random effects.

    More seeds are not more items: the items' own variance does not shrink with them. The variance is the sum of that
    between groups, of the items' means over seeds, and of that between seeds, of the seeds' means over items: both hold
    a share of the interaction, which is so counted twice, on the safe side. Degrees of freedom after Satterthwaite
    (1946, Biometrics Bulletin 2:110-114). With two or three seeds that differ a lot the interval is wide, and still
    covers at 0.90 to 0.94 instead of 0.95: a spread cannot be learned from two numbers.

    Args:
        values: one number an item and seed.
        groups: one group per item.
        level: confidence level.

    Raises:
        SettingError: fewer than two seeds or groups, NaN, or lengths that differ.
    """
    inside("level", level, 0.0, 1.0)
    table = np.asarray(values, dtype=np.float64)
    n_seeds = len(table)
    if n_seeds < 2:
        raise SettingError(
            f"{n_seeds} seed", needed="at least 2: one says nothing about how much seeds differ",
            fix="use paired_difference or cluster_mean_interval",
        )  # fmt: skip
    item_values("values", table.ravel())
    over_seeds = clusters(table.mean(0), groups)
    mean, each = over_seeds.mean, table.mean(1)
    between_groups = over_seeds.standard_error**2
    between_seeds = float(np.var(each, ddof=1)) / n_seeds
    variance = between_groups + between_seeds
    if not variance > 0:
        p = 1.0 if mean == 0 else 2.0 ** (1 - over_seeds.n_groups)  # what flipping the groups' signs would give
        return CrossedMean(mean, mean, mean, p, 0.0, math.inf, 0.0, level, over_seeds.n, over_seeds.n_groups, n_seeds)
    df = variance**2 / (between_groups**2 / (over_seeds.n_groups - 1) + between_seeds**2 / (n_seeds - 1))
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + level) / 2, df)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, df))
    sd = float(each.std(ddof=1))
    return CrossedMean(
        mean, mean - reach, mean + reach, p, error, df, sd, level, over_seeds.n, over_seeds.n_groups, n_seeds
    )
