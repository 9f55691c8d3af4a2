"""Would "which of two groups" explain a correlation over models as well? Knows only numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from prismlens.comparison.correlation import partial_correlation, row_correlations
from prismlens.comparison.inputs import is_flat, model_pairs, model_values
from prismlens.errors import SettingError


@dataclass(frozen=True)
class ClusterCheck:
    """A correlation beside that of a two-group indicator.

    Args:
        r: of the value itself.
        r_indicator: of the indicator (1 for the second group, 0 for the first).
        separation: share of the value's variance that lies between the two groups.
        within: pooled correlation inside the groups (partial, the indicator held fixed); NaN where nothing is left.
        within_groups: correlation inside each group; NaN for fewer than 3 models or where one value does not vary.
        second: whether each model is in the second group.
        as_well: whether the indicator, which knows nothing of the value inside a group, reaches the value's |r|.
    """

    r: float
    r_indicator: float
    separation: float
    within: float
    within_groups: tuple[float, float]
    second: tuple[bool, ...]
    as_well: bool


def two_groups(values: ArrayLike) -> Bool[np.ndarray, " model"]:
    """Whether each model is in the upper of two groups: the cut of the sorted values with the least spread inside.

    Exact two-means on a line (Fisher 1958, JASA 53:789-798): of the n - 1 cuts the one with the largest sum of squares
    between groups; equal values are never parted.

    Raises:
        SettingError: fewer than 3 models, NaN, or all values equal.
    """
    vector = model_values("values", values)
    cuts = np.unique(vector)[1:]
    return vector >= max(cuts, key=lambda cut: _between(vector, vector >= cut))


def cluster_check(x: ArrayLike, y: ArrayLike, *, second: Sequence[bool] | None = None) -> ClusterCheck:
    """Compare a value's correlation with that of membership in one of two groups.

    Where the indicator does as well, the models are two points rather than n, and whatever else differs between the
    groups (stages, latent budget, loss weight) explains `y` equally. Groups found here are read off `x` alone, so that
    the indicator has no advantage from looking at `y`.

    Args:
        x: the value that is said to explain, one a model.
        y: what is to be explained.
        second: whether each model is in the second group; by `two_groups` of `x` when not given.

    Raises:
        SettingError: fewer than 4 models, different lengths, NaN, a constant, or an empty group.
    """
    first, other = model_pairs(x, y, at_least=4)
    member = two_groups(first) if second is None else np.asarray(second, dtype=bool)
    if member.shape != first.shape or member.all() or not member.any():
        raise SettingError(
            f"`second` is {member.tolist()} for {len(first)} models", needed="a boolean a model, both values present"
        )
    indicator = member.astype(np.float64)
    r, r_indicator = row_correlations(np.stack([first, indicator]), np.stack([other, other]))
    total = float(((first - first.mean()) ** 2).sum())
    return ClusterCheck(
        r=float(r), r_indicator=float(r_indicator), separation=_between(first, member) / total,
        within=partial_correlation(first, other, indicator),
        within_groups=(_inside(first, other, ~member), _inside(first, other, member)),
        second=tuple(member.tolist()), as_well=bool(abs(r_indicator) >= abs(r)),
    )  # fmt: skip


def _between(values: Float[np.ndarray, " model"], member: Bool[np.ndarray, " model"]) -> float:
    """Sum of squares between two groups."""
    return float(sum(m.sum() * (values[m].mean() - values.mean()) ** 2 for m in (member, ~member)))


def _inside(x: np.ndarray, y: np.ndarray, member: np.ndarray) -> float:
    """Correlation inside one group."""
    if member.sum() < 3 or is_flat(x[member]) or is_flat(y[member]):
        return float("nan")
    return float(row_correlations(x[member][None], y[member][None])[0])
