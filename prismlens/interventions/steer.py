"""The operation that adds a multiple of a direction; knows only its direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, finite, one_of, present, same_width
from prismlens.interventions.values import Numbers, Values, frozen

UNITS = ("raw", "std")


@dataclass(frozen=True)
class Steer(Operation):
    """Add ``amount`` times a direction to the value.

    Question: does moving along this direction (of a probe, or between two means) move the answer? A random direction of
    the same length is the control.

    Args:
        direction: ``[d]``, as wide as the site; a probe's is ``readout.direction(...).vector``.
        amount: how far; negative for the other way.
        unit: ``"raw"``: the direction as it is given, length included. ``"std"``: the direction's unit vector times
            the standard deviation of the site along it, over clean runs and the positions of a stage.
    """

    direction: Numbers
    amount: float | int
    unit: str = "raw"

    def __post_init__(self) -> None:
        direction = Values.of("Steer(direction)", self.direction, 1)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "amount", finite("amount", self.amount))
        one_of("unit", self.unit, UNITS)
        if not np.linalg.norm(direction.array()) > 0:
            raise EditError("Steer with a direction of length 0", needed="at least one number other than 0")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """``{"spread"}`` in units of the standard deviation, else nothing."""
        return frozenset({"spread"} if self.unit == "std" else ())

    @property
    def along(self) -> Float[np.ndarray, " d"]:
        """The unit vector that spreads are measured along."""
        array = frozen(self.direction).array()
        return array / np.linalg.norm(array)

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The value, moved; computed in at least float32."""
        same_width(self, frozen(self.direction).shape[0], value)
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.unit == "raw":
            return (exact + self.amount * frozen(self.direction).like(exact)).to(value.dtype)
        step = present(context.spread).to(exact)[:, None] * torch.from_numpy(self.along).to(exact)
        return (exact + self.amount * step).to(value.dtype)
