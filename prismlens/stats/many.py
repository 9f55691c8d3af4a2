"""Correction for testing many conditions at once; knows nothing of the tests."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from statsmodels.stats.multitest import multipletests

from prismlens.errors import SettingError
from prismlens.stats.inputs import item_values


def holm(pvalues: ArrayLike) -> Float[np.ndarray, " test"]:
    """Holm's step-down adjusted p-values, in the given order (Holm 1979, Scand. J. Statist. 6:65-70).

    Comparing them with alpha keeps the chance of any false rejection below alpha, whatever the dependence of the tests.

    Raises:
        SettingError: no p-values, NaN, or one outside 0..1.
    """
    values = item_values("pvalues", pvalues)
    if values.min() < 0 or values.max() > 1:
        raise SettingError(f"`pvalues` reach from {values.min():g} to {values.max():g}", needed="numbers in 0..1")
    return np.asarray(multipletests(values, method="holm")[1], dtype=np.float64)
