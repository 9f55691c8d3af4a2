"""Probes that need class means only: the difference of means and the nearest centroid; nothing to tune."""

from __future__ import annotations

import numpy as np

from prismlens.probes.linear import LinearProbe
from prismlens.probes.span import Span


class MeanDifferenceProbe(LinearProbe):
    """Each class's direction is its mean minus the mean of the other classes' means; the cut lies half way.

    For two classes this is the usual difference of means, in raw units by default, as steering uses it.

    Args:
        standardize: see `LinearProbe`.
    """

    def __init__(self, *, standardize: bool = False) -> None:
        super().__init__(standardize=standardize)

    def _fit_span(self, where: Span, codes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        means = class_means(where.rows, codes, n_classes)
        others = (means.sum(0) - means) / (n_classes - 1)
        directions = means - others
        return directions.T, -(directions * (means + others)).sum(1) / 2


class CentroidProbe(LinearProbe):
    """The class whose mean is nearest, in standardised features by default; a linear rule, since |x|^2 is common.

    Args:
        standardize: see `LinearProbe`.
    """

    def __init__(self, *, standardize: bool = True) -> None:
        super().__init__(standardize=standardize)

    def _fit_span(self, where: Span, codes: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        means = class_means(where.rows, codes, n_classes)
        return means.T, -(means**2).sum(1) / 2


def class_means(rows: np.ndarray, codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Mean row of each class, ``[class, column]``."""
    member = codes[:, None] == np.arange(n_classes)
    return (member / member.sum(0)).T @ rows
