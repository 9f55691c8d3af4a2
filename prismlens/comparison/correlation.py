"""Correlation over a few models, its exact permutation test, and what one model decides; knows only numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from prismlens.comparison.inputs import is_flat, model_pairs, model_values
from prismlens.errors import SettingError

EXACT_MODELS = 8
"""Up to so many models all orders (40,320) are enumerated."""

Ranked = Callable[[Float[np.ndarray, "*rows model"]], Float[np.ndarray, "*rows model"]]


def _as_they_are(values: np.ndarray) -> np.ndarray:
    return values


def _ranks(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(values, axis=-1)


METHODS: Mapping[str, Ranked] = {"pearson": _as_they_are, "spearman": _ranks}
"""Name -> what is done to the values before Pearson's r; Spearman's is r of the ranks, ties sharing their mean rank."""


@dataclass(frozen=True)
class Correlation:
    """A correlation over models.

    Args:
        r: the coefficient.
        p: two-sided p-value of the permutation test.
        exact: whether all orders were enumerated.
        smallest_p: the smallest p-value that the test can give, whatever the values.
        n: number of models.
        method: ``"pearson"`` or ``"spearman"``.
    """

    r: float
    p: float
    exact: bool
    smallest_p: float
    n: int
    method: str


@dataclass(frozen=True)
class LeaveOneOut:
    """The correlation without each model in turn.

    Args:
        r: one coefficient a model, in the given order: that of the others (NaN where the others do not vary).
        low: the smallest of them.
        high: the largest.
        undefined: how many are NaN.
    """

    r: tuple[float, ...]
    low: float
    high: float
    undefined: int


def method_named(method: str) -> Ranked:
    """The transformation of a method; an unknown name is a SettingError."""
    if method not in METHODS:
        raise SettingError(f"`method` is {method!r}", needed=" or ".join(map(repr, METHODS)))
    return METHODS[method]


def row_correlations(x: Float[np.ndarray, "row model"], y: Float[np.ndarray, "row model"]) -> Float[np.ndarray, " row"]:
    """Pearson's r of each row of one table with the same row of the other; NaN where a row does not vary."""
    first, second = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    flat = is_flat(x) | is_flat(y)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (first * second).sum(axis=-1) / scale
    return np.where(flat, np.nan, np.clip(r, -1.0, 1.0))


def correlation(
    x: ArrayLike, y: ArrayLike, *, method: str = "pearson", n_resamples: int = 20_000, seed: int = 0
) -> Correlation:
    """Correlation of two values over models, with a two-sided permutation test of |r| (Pitman 1937, JRSS B 4:225-232).

    Up to `EXACT_MODELS` models every order is tried and p is the share that reaches the observed |r|; beyond that
    ``(1 + hits) / (1 + n_resamples)`` over random orders. Null: the values of `y` are exchangeable over models. That
    fails where models come in families; see `cluster_check`.

    Args:
        x: one value a model.
        y: the other, same models in the same order.
        method: ``"pearson"`` or ``"spearman"``.
        n_resamples: random orders where they are not enumerated.
        seed: of these.

    Raises:
        SettingError: fewer than 3 models, different lengths, NaN, a constant, or an unknown method.
    """
    transformed = method_named(method)
    first, second = (transformed(values) for values in model_pairs(x, y))
    n = len(first)
    exact = n <= EXACT_MODELS
    centred = second - second.mean()
    unit = centred / np.linalg.norm(centred)

    def strength(values: np.ndarray, axis: int = -1) -> Any:
        """|r| up to a factor that no reordering changes, rounded so that equal orders tie."""
        return np.round(np.abs(np.moveaxis(values, axis, -1) @ unit), 12)

    deviation = first - first.mean()
    found = stats.permutation_test(
        (deviation / np.linalg.norm(deviation),), strength, permutation_type="pairings", vectorized=True,
        alternative="greater", n_resamples=math.factorial(n) if exact else n_resamples, rng=np.random.default_rng(seed),
    )  # fmt: skip
    r = float(row_correlations(first[None], second[None])[0])
    return Correlation(r, float(found.pvalue), exact, 1 / (math.factorial(n) if exact else 1 + n_resamples), n, method)


def leave_one_out(x: ArrayLike, y: ArrayLike, *, method: str = "pearson") -> LeaveOneOut:
    """The correlation without each model in turn: a range that crosses 0 hangs on one model.

    Args:
        x: one value a model.
        y: the other.
        method: ``"pearson"`` or ``"spearman"``.

    Raises:
        SettingError: fewer than 4 models, different lengths, NaN, a constant, or an unknown method.
    """
    transformed = method_named(method)
    first, second = model_pairs(x, y, at_least=4)
    others = [np.delete(np.arange(len(first)), i) for i in range(len(first))]
    kept = [transformed(np.stack([values[keep] for keep in others])) for values in (first, second)]
    r = row_correlations(*kept)
    undefined = int(np.isnan(r).sum())
    low, high = (np.nan, np.nan) if undefined == len(r) else (float(np.nanmin(r)), float(np.nanmax(r)))
    return LeaveOneOut(tuple(r.tolist()), low, high, undefined)


def partial_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike, *, method: str = "pearson") -> float:
    """Correlation of what is left of two values when a third is held fixed.

    ``(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))`` (Yule 1907, Proc. R. Soc. A 79:182-193).

    Args:
        x: one value a model.
        y: the other.
        given: the value held fixed.
        method: ``"pearson"`` or ``"spearman"``.

    Returns:
        The partial correlation; NaN where the third value fixes one of the two completely.

    Raises:
        SettingError: fewer than 4 models, different lengths, NaN, a constant, or an unknown method.
    """
    transformed = method_named(method)
    first, second = (transformed(values) for values in model_pairs(x, y, at_least=4))
    third = transformed(model_values("given", given, at_least=4))
    if len(third) != len(first):
        raise SettingError(f"`given` has {len(third)} values and `x` has {len(first)}", needed="the same models")
    xy, xz, yz = row_correlations(np.stack([first, first, second]), np.stack([second, third, third]))
    left = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / math.sqrt(left)) if left > 1e-12 else math.nan
