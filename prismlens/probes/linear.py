"""What all linear probes share as scikit-learn classifiers: checks, scaling, scores; fits nothing by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from prismlens.errors import SettingError
from prismlens.probes.readout import LinearReadout
from prismlens.probes.span import Span, span


class LinearProbe(ClassifierMixin, BaseEstimator):
    """A classifier whose scores are linear in the features.

    Args:
        standardize: whether features are divided by their standard deviation before fitting. What is handed out is
            always in the raw space.
    """

    def __init__(self, *, standardize: bool = True) -> None:
        self.standardize = standardize

    @abstractmethod
    def _fit_span(self, where: Span, codes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights ``[rank, class]`` and offsets ``[class]`` of the rotated training rows."""

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fit on rows and labels.

        Raises:
            SettingError: all labels are the same, or there is one row only.
        """
        x, y = cast(tuple[np.ndarray, np.ndarray], validate_data(self, X, y, dtype=np.float64))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise SettingError(
                f"n_samples = {len(y)}, all of one class: {self.classes_.tolist()[0]!r}",
                needed="at least 2 classes",
                cause="a filter removed the others",
            )
        where = span(x, standardize=self.standardize)
        weights, offsets = self._fit_span(where, codes, len(self.classes_))
        self.coef_ = (where.unrotated(weights) / where.scale[:, None]).T
        self.intercept_ = offsets - self.coef_ @ where.mean
        return self

    def readout(self) -> LinearReadout:
        """The fitted scores, frozen."""
        check_is_fitted(self)
        return LinearReadout(tuple(self.classes_.tolist()), self.coef_, self.intercept_)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores ``[item, class]``; for two classes the difference of the two, as scikit-learn wants it."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class with the highest score."""
        scores = self._scores(X)
        return self.classes_[scores.argmax(1)]

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x = cast(np.ndarray, validate_data(self, X, dtype=np.float64, reset=False))
        return x @ self.coef_.T + self.intercept_
