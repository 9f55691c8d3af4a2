"""How a set of vectors lies in space: alike or spread out, in how many dimensions, like which other set.

All from Gram matrices (inner products of items), in double precision, so that width costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

SHARE = 0.9
"""Of the variance that `rank` asks for."""
Gram = Float[np.ndarray, "item item"]


def gram(vectors: Float[np.ndarray, "item d_model"]) -> Float[np.ndarray, "item item"]:
    """Inner products of all pairs."""
    wide = np.asarray(vectors, dtype=np.float64)
    return wide @ wide.T


def debiased_cka(first: Float[np.ndarray, "item item"], second: Float[np.ndarray, "item item"]) -> float:
    """Linear centred kernel alignment from the unbiased estimator of HSIC.

    1 where the two sets are the same up to rotation and scale; 0 in expectation where they are independent, however
    few items and however wide the vectors (the plain estimator goes to 1 there). It may be below 0. Kornblith et al.
    2019 (1905.00414); unbiased HSIC: Song et al. 2012 (JMLR 13:1393), eq. 4; why to debias: Murphy et al. 2024
    (2405.01012).

    Args:
        first: Gram matrix of one set.
        second: of the other, the same items in the same order.

    Returns:
        NaN with fewer than four items, or where a set does not vary.
    """
    own = _hsic(first, first) * _hsic(second, second)
    return _hsic(first, second) / math.sqrt(own) if own > 0 and _hsic(first, first) > 0 else math.nan


def participation_ratio(inner: Float[np.ndarray, "item item"]) -> float:
    """Effective number of dimensions of the centred vectors, ``(sum l)^2 / sum l^2`` over the variances ``l``.

    At most the number of items less one; NaN where the vectors do not vary. The identity of one for vectors that vary
    along a line; d for equal variance in d dimensions (with many more items than d).
    """
    own = _centred(inner)
    total = np.trace(own)
    return float(total**2 / np.sum(own**2)) if total > _rounding(inner) else math.nan


def rank(inner: Float[np.ndarray, "item item"], share: float = SHARE) -> float:
    """The fewest principal components that hold this share of the variance; NaN where the vectors do not vary."""
    own = _centred(inner)
    if np.trace(own) <= _rounding(inner):
        return math.nan
    held = np.cumsum(np.linalg.eigvalsh(own)[::-1])
    return float(1 + np.argmax(held >= share * held[-1] * (1 - 1e-12)))


def cross_item_cosine(inner: Float[np.ndarray, "item item"], groups: Sequence[Hashable]) -> float:
    """Mean cosine over all pairs of items of different groups; near 1 the vectors have collapsed onto a direction.

    NaN where there is no such pair, or a vector is zero.
    """
    codes = pd.factorize(pd.Series(list(groups), dtype=object))[0]
    pairs = np.triu(codes[:, None] != codes[None, :])
    norms = np.sqrt(np.diag(inner))
    if not pairs.any() or not (norms > 0).all():
        return math.nan
    return float((inner / norms[:, None] / norms[None, :])[pairs].mean())


def _hsic(first: Float[np.ndarray, "item item"], second: Float[np.ndarray, "item item"]) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion; NaN with fewer than four items.

    The Gram matrices are centred first, which changes nothing but rounding: a common mean far from the origin would
    otherwise leave the difference of large numbers.
    """
    n = len(first)
    if n < 4:
        return math.nan
    a, b = (_centred(x) - np.diag(np.diag(_centred(x))) for x in (first, second))
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
    return float((np.sum(a * b) + sums - 2 / (n - 2) * (a.sum(0) @ b.sum(0))) / (n * (n - 3)))


def _centred(inner: Float[np.ndarray, "item item"]) -> Float[np.ndarray, "item item"]:
    """Inner products after the items' mean is taken off."""
    rows = inner.mean(0)
    return inner - rows[:, None] - rows[None, :] + rows.mean()


def _rounding(inner: Float[np.ndarray, "item item"]) -> float:
    """A trace below this is rounding: float32 vectors that are the same."""
    return 1e-12 * float(np.trace(inner))
