"""The operation that takes a concept out of a vector by an affine map; knows only its value and the map."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation


@dataclass(frozen=True, eq=False)
class Erase(Operation):
    """Replace the value x by ``x - removed @ read @ (x - mean)``.

    Question: does what a linear probe reads here matter for what comes later? The map comes from
    `prismlens.probes.Eraser`, fitted on other items. The tensors are not part of the JSON form.

    Args:
        mean, removed, read: see `prismlens.probes.Eraser`.
    """

    mean: Float[Tensor, " d"]
    removed: Float[Tensor, "d rank"]
    read: Float[Tensor, "rank d"]

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The value without the concept, computed in the map's dtype."""
        wide = value.to(self.mean)
        return (wide - (wide - self.mean) @ self.read.T @ self.removed.T).to(value)

    def __str__(self) -> str:
        return f"Erase(rank={self.removed.shape[1]})"
