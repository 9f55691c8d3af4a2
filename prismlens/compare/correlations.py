"""Correlations of two measures over models, one line each, with everything that could undo them; knows only numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from prismlens.comparison import (
    METHODS,
    cluster_check,
    correlation,
    correlation_interval,
    detectable_correlation,
    leave_one_out,
)
from prismlens.comparison.inputs import FEWEST, is_flat

COLUMNS = (
    "x", "y", "method", "n", "r", "low", "high", "p", "exact", "smallest_p", "loo_low", "loo_high", "r_indicator",
    "as_well", "within", "separation", "second", "detectable", "undefined", "left_out", "why",
)  # fmt: skip
FOUR = 4
"""Models from which on one can be left out, or two groups be told apart."""


@dataclass(frozen=True, eq=False)
class Values:
    """A measure over models.

    Args:
        name: of the measure.
        means: one a model; NaN where it was not measured.
        draws: the same in every resample.
    """

    name: str
    means: Float[np.ndarray, " model"]
    draws: Float[np.ndarray, "resample model"]


def correlation_frame(
    pairs: Sequence[tuple[Values, Values]],
    models: Sequence[str],
    second: Bool[np.ndarray, " model"] | None,
    *,
    level: float,
) -> pd.DataFrame:
    """One line a pair and method.

    Columns: ``x, y, method, n`` (models with both); ``r, low, high`` (other items and seeds, these models); ``p, exact,
    smallest_p`` (permutation of models); ``loo_low, loo_high`` (without each model in turn); ``r_indicator`` (of "which
    of two groups"), ``as_well`` (whether that explains y as well), ``within`` (pooled inside the groups),
    ``separation``, ``second`` (the models of the second group); ``detectable`` (the smallest true correlation that n
    models show with power .8); ``undefined`` (resamples without a correlation); ``left_out`` (models that lack one of
    the two); ``why`` (the reason, where there is no correlation at all or a part of it is missing; else empty).

    Args:
        pairs: measures.
        models: their names.
        second: whether each model is of the second group; found on x when None.
        level: of the intervals.
    """
    lines = [_line(x, y, method, models, second, level) for x, y in pairs for method in METHODS]
    return pd.DataFrame(lines, columns=COLUMNS)


def _line(
    x: Values, y: Values, method: str, models: Sequence[str], second: np.ndarray | None, level: float
) -> dict[str, Any]:
    """All columns of one pair under one method; what cannot be is missing, and ``why`` says so."""
    kept = ~(np.isnan(x.means) | np.isnan(y.means))
    n = int(kept.sum())
    line: dict[str, Any] = {
        "x": x.name, "y": y.name, "method": method, "n": n, "why": _absent(x, y, kept),
        "left_out": [name for name, has in zip(models, kept, strict=True) if not has],
    }  # fmt: skip
    if line["why"]:
        return line
    first, other = x.means[kept], y.means[kept]
    found = correlation(first, other, method=method)
    interval = correlation_interval(first, other, x.draws[:, kept], y.draws[:, kept], method=method, level=level)
    line |= {
        "r": found.r, "low": interval.low, "high": interval.high, "p": found.p, "exact": found.exact,
        "smallest_p": found.smallest_p, "detectable": detectable_correlation(n), "undefined": interval.undefined,
    }  # fmt: skip
    if n < FOUR:
        return line | {"why": f"{n} models: none can be left out, and no two groups told apart"}
    left = leave_one_out(first, other, method=method)
    line |= {"loo_low": left.low, "loo_high": left.high}
    return line | _clusters(
        first, other, None if second is None else second[kept], [m for m, k in zip(models, kept, strict=True) if k]
    )


def _clusters(
    x: Float[np.ndarray, " model"], y: Float[np.ndarray, " model"], second: np.ndarray | None, models: Sequence[str]
) -> dict[str, Any]:
    """The columns of the cluster check."""
    if second is not None and (second.all() or not second.any()):
        return {"why": "all models with both measures are of one of the two groups"}
    check = cluster_check(x, y, second=None if second is None else second.tolist())
    return {
        "r_indicator": check.r_indicator, "as_well": check.as_well, "within": check.within,
        "separation": check.separation,
        "second": [name for name, member in zip(models, check.second, strict=True) if member],
    }  # fmt: skip


def _absent(x: Values, y: Values, kept: np.ndarray) -> str:
    """Why there is no correlation; empty where there is one."""
    n = int(kept.sum())
    if n < FEWEST:
        return f"{n} of {len(kept)} models have both measures: no correlation (at least {FEWEST} are needed)"
    flat = [one.name for one in (x, y) if is_flat(one.means[kept])]
    return f"{' and '.join(flat)} {'is' if len(flat) == 1 else 'are'} equal for all {n} models" if flat else ""
