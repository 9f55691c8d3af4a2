"""Least-squares concept erasure in closed form: a mutable fitter, a frozen affine eraser; knows no probes.

The method is LEACE (Belrose et al. 2023, arXiv:2306.03819): among all affine maps after which no linear predictor of
the concept beats a constant one, the map that moves the vectors least in mean square, whatever inner product is used to
measure it. With W the pseudo-inverse square root of the covariance of x, and P the orthogonal projection onto the
column space of W Cov(x, z), it is ``r(x) = x - pinv(W) P W (x - E x)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prismlens.errors import SettingError

ROUNDING = 1e-10
"""Variance, and squared correlation with the concept, below which there is none (relative, in float64)."""


@dataclass(frozen=True, eq=False)
class Eraser:
    """An affine map that removes what is linearly there of a concept.

    Args:
        mean: of the vectors it was fitted on; it stays where it is.
        removed: directions along which something is taken away.
        read: how much is taken away along each: the part of ``x - mean`` that covaries with the concept.
    """

    mean: Float[Tensor, " d"]
    removed: Float[Tensor, "d rank"]
    read: Float[Tensor, "rank d"]

    @property
    def rank(self) -> int:
        """How many dimensions are erased: at most the number of classes minus one."""
        return self.removed.shape[1]

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The vectors without the concept, in their own dtype."""
        wide = x.to(self.mean)
        return (wide - (wide - self.mean) @ self.read.T @ self.removed.T).to(x)


class ErasureFitter:
    """Collects means and covariances batch by batch.

    Args:
        d: features of x.
        k: columns of the concept: one for each class (see `update_labels`), or any numbers.
    """

    def __init__(self, d: int, k: int) -> None:
        self.n = 0
        self.mean_x, self.mean_z = torch.zeros(d, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
        self.square_x, self.square_z = torch.zeros(d, d, dtype=torch.float64), 0.0
        self.cross = torch.zeros(d, k, dtype=torch.float64)

    def update(self, x: Float[Tensor, "item d"], z: Float[Tensor, "item k"]) -> ErasureFitter:
        """Add vectors and what the concept is for each.

        Batches are merged by their own means (Chan, Golub & LeVeque 1983), so that their sizes do not matter.

        Raises:
            SettingError: other numbers of rows or features than announced, NaN or infinity.
        """
        x, z = x.detach().double().cpu(), z.detach().double().cpu()
        if x.shape[1:] != self.mean_x.shape or z.shape[1:] != self.mean_z.shape or len(x) != len(z):
            raise SettingError(
                f"x of the shape {tuple(x.shape)} and z of the shape {tuple(z.shape)}",
                needed=f"(n, {len(self.mean_x)}) and (n, {len(self.mean_z)})",
            )
        if not (x.isfinite().all() and z.isfinite().all()):
            raise SettingError("x or z holds NaN or infinity", needed="finite numbers")
        if not len(x):
            return self
        total = self.n + len(x)
        shift_x, shift_z = x.mean(0) - self.mean_x, z.mean(0) - self.mean_z
        own_x, own_z = x - x.mean(0), z - z.mean(0)
        weight = self.n * len(x) / total
        self.square_x += own_x.T @ own_x + weight * torch.outer(shift_x, shift_x)
        self.square_z += float(own_z.square().sum() + weight * shift_z.square().sum())
        self.cross += own_x.T @ own_z + weight * torch.outer(shift_x, shift_z)
        self.mean_x += shift_x * len(x) / total
        self.mean_z += shift_z * len(x) / total
        self.n = total
        return self

    def update_labels(self, x: Float[Tensor, "item d"], codes: Int[Tensor, " item"]) -> ErasureFitter:
        """Add vectors and their class codes 0, 1, ..., k - 1."""
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.mean_z):
            raise SettingError(
                f"codes from {int(codes.min())} to {int(codes.max())}", needed=f"0 to {len(self.mean_z) - 1}"
            )
        return self.update(x, torch.nn.functional.one_hot(codes.long(), len(self.mean_z)).double())

    def eraser(self) -> Eraser:
        """The eraser for what was seen so far.

        Raises:
            SettingError: fewer than two vectors were seen.
        """
        if self.n < 2:
            raise SettingError(f"an eraser of {self.n} vectors", needed="at least 2", fix="call `update` first")
        values, vectors = torch.linalg.eigh(self.square_x / self.n)
        kept = values > ROUNDING * values.max().clamp(min=0)
        vectors, spread = vectors[:, kept], values[kept].sqrt()
        # In the kept axes the whitening is a division, and what is left of the cross-covariance is small.
        left, size, _ = torch.linalg.svd((vectors.T @ self.cross / self.n) / spread[:, None], full_matrices=False)
        left = left[:, size > (ROUNDING * self.square_z / self.n) ** 0.5]
        return Eraser(self.mean_x.clone(), vectors @ (spread[:, None] * left), (vectors @ (left / spread[:, None])).T)
