"""The ridge classifier as a linear probe; chooses no penalty."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeClassifier

from prismlens.errors import SettingError
from prismlens.probes.linear import LinearProbe
from prismlens.probes.span import Span


class RidgeProbe(LinearProbe):
    """Least squares on labels of -1 and 1 with an L2 penalty: scikit-learn's `RidgeClassifier` in the rows' span.

    Args:
        alpha: strength of the penalty; positive.
        standardize: see `LinearProbe`.
    """

    def __init__(self, *, alpha: float = 1.0, standardize: bool = True) -> None:
        super().__init__(standardize=standardize)
        self.alpha = alpha

    def _fit_span(self, where: Span, codes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 < self.alpha < np.inf:
            raise SettingError(f"alpha = {self.alpha!r}", needed="a positive number")
        if not where.rows.shape[1]:
            return np.zeros((0, n_classes)), np.bincount(codes, minlength=n_classes) / len(codes)
        fitted = RidgeClassifier(alpha=self.alpha).fit(where.rows, codes)
        weights, offsets = np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)
        if n_classes == 2:  # scikit-learn gives one vector; the two classes share it
            weights, offsets = np.concatenate([-weights, weights]) / 2, np.concatenate([-offsets, offsets]) / 2
        return weights.T, offsets
