"""Checks the inputs of every statistic and sums items by group; knows nothing of any test."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from prismlens.errors import SettingError


@dataclass(frozen=True, eq=False)
class Clusters:
    """Items summed by group, which is all that a clustered mean needs.

    Args:
        sums: sum of the values of each group's items; groups in sorted order, so that item order does not matter.
        sizes: number of items of each group.
    """

    sums: Float[np.ndarray, " group"]
    sizes: Int[np.ndarray, " group"]

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.sizes.sum())

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def mean(self) -> float:
        """Mean over items (not over groups)."""
        return float(self.sums.sum() / self.n)

    @property
    def standard_error(self) -> float:
        """Cluster-robust standard error of the mean over items.

        The linearised ratio estimator, sqrt(G / (G - 1) * sum((sum_g - mean * size_g)^2)) / n (Cochran 1977, *Sampling
        Techniques*, ch. 9); with one item a group it is the ordinary s / sqrt(n).
        """
        residuals = self.sums - self.mean * self.sizes
        return float(np.sqrt(self.n_groups / (self.n_groups - 1) * np.sum(residuals**2)) / self.n)


def clusters(values: Float[np.ndarray, " item"], groups: Iterable[Hashable]) -> Clusters:
    """Sum items by group.

    Raises:
        SettingError: not one group per item, a missing group, or fewer than two groups.
    """
    labels = pd.Series(list(groups), dtype=object)
    same_length(values=values, groups=labels)
    codes, names = pd.factorize(labels, sort=True)
    if (codes < 0).any():
        raise SettingError(f"item {int(np.argmax(codes < 0))} has no group", needed="a group for each item")
    if len(names) < 2:
        raise SettingError(
            f"all {len(labels)} items are in the group {names[0]!r}",
            needed="at least 2 groups: one group says nothing about how much groups differ",
            cause="the items' `group` was left empty",
            fix="give items of one scene their scene's id, and unrelated items an id each",
        )
    return Clusters(np.bincount(codes, weights=values), np.bincount(codes))


def item_values(name: str, values: ArrayLike) -> Float[np.ndarray, " item"]:
    """The values as a vector of float64.

    Raises:
        SettingError: not one-dimensional, not numbers, empty, NaN or infinite.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(f"`{name}` holds something that is not a number", needed="one number per item") from error
    if vector.ndim != 1:
        raise SettingError(f"`{name}` has the shape {vector.shape}", needed="one value per item, shape (items,)")
    if len(vector) == 0:
        raise SettingError(f"`{name}` is empty", needed="at least one item", cause="a filter removed every item")
    if not np.isfinite(vector).all():
        first = int(np.argmax(~np.isfinite(vector)))
        raise SettingError(
            f"`{name}` is {vector[first]} at item {first} ({int((~np.isfinite(vector)).sum())} such items)",
            needed="finite numbers",
            fix="drop those items from both conditions, and say how many were dropped",
        )
    return vector


def item_outcomes(name: str, values: ArrayLike) -> Bool[np.ndarray, " item"]:
    """The values as a vector of booleans; anything but true/false and 0/1 is a SettingError."""
    vector = item_values(name, values)
    wrong = ~np.isin(vector, (0.0, 1.0))
    if wrong.any():
        raise SettingError(
            f"`{name}` holds {vector[wrong][0]}",
            needed="right or wrong: booleans, or 0 and 1",
            fix="threshold it first",
        )
    return vector.astype(bool)


def paired_values(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, " item"]:
    """``after - before``, item by item, after both were checked."""
    first, second = item_values("before", before), item_values("after", after)
    same_length(before=first, after=second)
    return second - first


def same_length(**named: object) -> None:
    """Raise a SettingError unless all of the named sequences have the same length."""
    lengths = {name: len(values) for name, values in named.items()}  # type: ignore[arg-type]
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
        raise SettingError(
            f"the lengths differ: {given}",
            needed="one entry per item, in the same order",
            cause="the two conditions were not run on the same items",
        )


def inside(name: str, value: float, low: float, high: float) -> None:
    """Raise a SettingError unless ``low < value < high`` (NaN never is)."""
    if not low < value < high:
        upper = "" if math.isinf(high) else f" < {high:g}"
        fix = "95 % is 0.95" if high == 1 and value > 1 else ""
        raise SettingError(f"`{name}` is {value!r}", needed=f"{low:g} < {name}{upper}", fix=fix)


def generator(seed: int, n_resamples: int) -> np.random.Generator:
    """A fresh generator for this seed, after both settings were checked."""
    if n_resamples < 1:
        raise SettingError(f"`n_resamples` is {n_resamples}", needed="at least 1", fix="10_000 is usual")
    if seed < 0:
        raise SettingError(f"`seed` is {seed}", needed="an integer of 0 or more")
    return np.random.default_rng(seed)
