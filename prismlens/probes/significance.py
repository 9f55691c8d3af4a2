"""p-values from accuracies under shuffled labels, for one place and for a whole map; draws nothing itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from prismlens.errors import SettingError

ROUNDING = 1e-9
"""Accuracies closer than this are equal."""


def permutation_p(observed: float, null: Float[np.ndarray, " shuffle"]) -> float:
    """One-sided p-value ``(1 + hits) / (1 + shuffles)``, never 0 (Phipson & Smyth 2010, SAGMB 9:39); NaN for none."""
    return float((1 + (null >= observed - ROUNDING).sum()) / (1 + len(null))) if len(null) else float("nan")


def map_p(observed: Mapping[str, float], nulls: Mapping[str, Float[np.ndarray, " shuffle"]]) -> dict[str, float]:
    """The same, against the highest accuracy that each shuffle reaches anywhere on the map (Westfall & Young 1993).

    Comparing them with alpha keeps the chance of any false find on the map below alpha, whatever the dependence of its
    places: the shuffles have to be the same at all of them.

    Raises:
        SettingError: the places have different numbers of shuffles.
    """
    if len({len(null) for null in nulls.values()}) > 1:
        raise SettingError("the places have different numbers of shuffles", needed="the same shuffles at all of them")
    highest = np.max(np.stack(list(nulls.values())), axis=0)
    return {name: permutation_p(value, highest) for name, value in observed.items()}
