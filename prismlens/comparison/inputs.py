"""Checks values that come one a model; knows nothing of any statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from prismlens.errors import SettingError

FEWEST = 3
"""Two points lie on a line whatever they are."""
FLAT = 1e-12
"""A spread below this share of the largest value is rounding: the values are equal."""


def model_values(name: str, values: ArrayLike, *, at_least: int = FEWEST) -> Float[np.ndarray, " model"]:
    """The values as a vector of float64, one a model.

    Raises:
        SettingError: not numbers, not a vector, too few models, NaN or infinite, or all equal.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(f"`{name}` holds something that is not a number", needed="one number a model") from error
    if vector.ndim != 1:
        raise SettingError(f"`{name}` has the shape {vector.shape}", needed="one value a model, shape (models,)")
    if len(vector) < at_least:
        raise SettingError(
            f"`{name}` has {len(vector)} values",
            needed=f"at least {at_least} models",
            cause="two points lie on a line whatever they are",
            fix="compare more models",
        )
    if not np.isfinite(vector).all():
        first = int(np.argmax(~np.isfinite(vector)))
        raise SettingError(
            f"`{name}` is {vector[first]} for model {first}", needed="finite numbers", fix="leave that model out"
        )
    if is_flat(vector):
        raise SettingError(
            f"`{name}` is {vector[0]:g} for all {len(vector)} models",
            needed="values that differ: nothing correlates with a constant",
        )
    return vector


def model_pairs(x: ArrayLike, y: ArrayLike, *, at_least: int = FEWEST) -> tuple[np.ndarray, np.ndarray]:
    """Both vectors, checked, one value a model in each; a SettingError where their lengths differ."""
    first, second = model_values("x", x, at_least=at_least), model_values("y", y, at_least=at_least)
    if len(first) != len(second):
        raise SettingError(
            f"`x` has {len(first)} values and `y` has {len(second)}", needed="both of the same models, in one order"
        )
    return first, second


def is_flat(values: Float[np.ndarray, "*rows model"]) -> Any:
    """Whether the values of each row are equal but for rounding: a boolean, or one a row."""
    return np.ptp(values, axis=-1) <= FLAT * np.abs(values).max(axis=-1)
