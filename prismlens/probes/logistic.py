"""The logistic probe as a scikit-learn classifier; chooses no C."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from prismlens.errors import SettingError
from prismlens.probes.linear import LinearProbe
from prismlens.probes.multinomial import fit_multinomial
from prismlens.probes.span import Span


class LogisticProbe(LinearProbe):
    """Multinomial logistic regression with an L2 penalty, at the minimum of scikit-learn's `LogisticRegression`.

    Args:
        C: inverse strength of the penalty; positive.
        standardize: see `LinearProbe`.
    """

    def __init__(self, *, C: float = 1.0, standardize: bool = True) -> None:
        super().__init__(standardize=standardize)
        self.C = C

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``[item, class]``."""
        return softmax(self._scores(X), axis=1)

    def _fit_span(self, where: Span, codes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 < self.C < np.inf:
            raise SettingError(f"C = {self.C!r}", needed="a positive number")
        solution = fit_multinomial(where.rows, codes[None], np.array([float(self.C)]), n_classes)
        return solution.weights[0], solution.intercepts[0]
