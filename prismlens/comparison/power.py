"""The correlation that so few models could have shown; knows nothing of what they showed."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

from prismlens.comparison.inputs import FEWEST
from prismlens.errors import SettingError
from prismlens.stats.inputs import inside

POINTS = 200
"""Quantiles of the chi-square over which the power is averaged; 200 agree with 20,000 to four digits."""


def correlation_power(rho: float, n_models: int, *, alpha: float = 0.05) -> float:
    """Probability that n models show a true correlation, by the two-sided t-test of Pearson's r.

    Exact for bivariate normal values: given x, t is noncentral with ``delta = rho / sqrt(1 - rho^2) * sqrt(S)``, where
    S, the sum of squares of x, is chi-square with n - 1 degrees of freedom (Gatsonis & Sampson 1989, Psychological
    Bulletin 106:516-524).

    Args:
        rho: the true correlation, inside -1..1.
        n_models: number of models.
        alpha: size of the test.

    Raises:
        SettingError: fewer than 3 models, or a setting out of range.
    """
    inside("rho", rho, -1.0, 1.0)
    inside("alpha", alpha, 0.0, 1.0)
    if n_models < FEWEST:
        raise SettingError(f"`n_models` is {n_models}", needed=f"at least {FEWEST}")
    squares = stats.chi2.ppf((np.arange(POINTS) + 0.5) / POINTS, n_models - 1)
    delta = abs(rho) / math.sqrt(1 - rho**2) * np.sqrt(squares)
    edge = stats.t.ppf(1 - alpha / 2, n_models - 2)
    # scipy's noncentral t turns to NaN far out in a tail, where the upper one is 1 and the lower 0.
    upper = np.nan_to_num(stats.nct.sf(edge, n_models - 2, delta), nan=1.0)
    lower = np.nan_to_num(stats.nct.cdf(-edge, n_models - 2, delta), nan=0.0)
    return float((upper + lower).mean())


def detectable_correlation(n_models: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true correlation that n models would show with the given power; see `correlation_power`.

    Args:
        n_models: number of models.
        alpha: size of the two-sided test.
        power: wanted probability of finding it.

    Raises:
        SettingError: fewer than 3 models, a setting out of range, or a power below the size of the test.
    """
    inside("power", power, alpha, 1.0)
    highest = 1 - 1e-9
    found = optimize.root_scalar(
        lambda rho: correlation_power(rho, n_models, alpha=alpha) - power, bracket=(0.0, highest), xtol=1e-6
    )
    return float(found.root)
