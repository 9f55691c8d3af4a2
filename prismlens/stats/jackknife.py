"""Interval of a statistic of all items together, by leaving out one group at a time; knows no statistic."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool
from scipy import stats

from prismlens.errors import SettingError
from prismlens.stats.inputs import inside
from prismlens.stats.rates import Interval


def jackknife_interval(
    statistic: Callable[[Bool[np.ndarray, " item"]], float], groups: Iterable[Hashable], *, level: float = 0.95
) -> Interval:
    """Delete-a-group jackknife: ``estimate +- t(G - 1) * sqrt((G - 1) / G * sum((theta_g - mean)^2))``.

    For statistics that compare items with each other (an index of similarity, a dimension): a bootstrap draws items
    twice, and an item is too similar to itself. Only for smooth statistics; a rank is not one (Efron 1982, *The
    Jackknife, the Bootstrap and Other Resampling Plans*, ch. 3). Normal theory: the ends may pass a possible range.

    Args:
        statistic: from a mask of the items that are kept to a number; NaN where it is not defined.
        groups: one group per item.
        level: confidence level.

    Returns:
        The estimate from all items; the ends are NaN where it, or that without some group, is NaN.

    Raises:
        SettingError: fewer than two groups, or a level out of range.
    """
    inside("level", level, 0.0, 1.0)
    codes, names = pd.factorize(pd.Series(list(groups), dtype=object))
    n, n_groups = len(codes), len(names)
    if n_groups < 2:
        raise SettingError(
            f"{n} items in {n_groups} group", needed="at least 2 groups: each is left out once",
            cause="the items' `group` was left empty", fix="give items of one scene their scene's id",
        )  # fmt: skip
    estimate = statistic(np.ones(n, dtype=bool))
    without = np.array([statistic(codes != code) for code in range(n_groups)])
    error = math.sqrt((n_groups - 1) / n_groups * float(np.sum((without - without.mean()) ** 2)))
    reach = float(stats.t.ppf((1 + level) / 2, n_groups - 1)) * error
    return Interval(estimate, estimate - reach, estimate + reach, level, n, n_groups)
