"""The operation that multiplies by a number; knows only its value."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, finite


@dataclass(frozen=True)
class Scale(Operation):
    """Multiply the value by a number.

    Question: does the length of the vector matter, apart from its direction? ``Scale(-1.0)`` reverses the direction.

    Args:
        factor: any finite number.
    """

    factor: float | int

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", finite("factor", self.factor))

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The value, multiplied."""
        return value * self.factor
