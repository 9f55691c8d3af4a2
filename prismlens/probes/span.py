"""Standardised training rows and the few axes that they span, there and back; knows no labels and no folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SMALLEST = 1e-12
"""Squared length of the shortest axis kept, relative to the longest: below it is rounding."""
ROUNDING = 1e-6
"""A feature whose spread is this small beside its largest value is constant: float32 cannot hold less."""


@dataclass(frozen=True, eq=False)
class Span:
    """Axes in which an L2-penalised linear model of these rows has the same minimum as over all features.

    The penalty is rotation invariant and directions that no training row has get no weight, so the fit over the
    ``rank`` rotated features, turned back, is the fit over all of them.

    Args:
        mean: of each feature over the training rows.
        scale: what each feature is divided by: its standard deviation (over n), 1 where it does not vary.
        left, right: their product maps standardised features to axes; kept apart, because for few rows the
            product would be the largest computation of all.
        rows: the training rows in the axes; columns are centred and orthogonal.
        varying: how many features vary.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    left: Float[np.ndarray, "d inner"]
    right: Float[np.ndarray, "inner rank"]
    rows: Float[np.ndarray, "row rank"]
    varying: int

    def project(self, x: Float[np.ndarray, "item d"]) -> Float[np.ndarray, "item rank"]:
        """Rows in the axes."""
        return ((x - self.mean) / self.scale) @ self.left @ self.right

    def unrotated(self, weights: Float[np.ndarray, "rank class"]) -> Float[np.ndarray, "d class"]:
        """Weights of the standardised features."""
        return self.left @ (self.right @ weights)


def span(x: Float[np.ndarray, "row d"], *, standardize: bool = True) -> Span:
    """The span of training rows, which are centred and, by default, divided by their spread."""
    mean = x.mean(0)
    z = x - mean
    spread = np.sqrt(np.einsum("rd,rd->d", z, z) / len(x))
    varies = spread > ROUNDING * np.maximum(x.max(0), -x.min(0))
    scale = np.where(varies & standardize, spread, 1.0)
    z *= varies / scale
    wide = z.shape[0] <= z.shape[1]
    values, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
    kept = values > max(SMALLEST * values.max(initial=0.0), 0.0)
    lengths, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if wide:
        return Span(mean, scale, z.T, vectors / lengths, vectors * lengths, int(varies.sum()))
    return Span(mean, scale, vectors, np.eye(len(lengths)), z @ vectors, int(varies.sum()))
