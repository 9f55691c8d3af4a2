"""The operation that changes nothing; knows only its value."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation


@dataclass(frozen=True)
class Identity(Operation):
    """Put the value back as it was.

    Question: does editing itself, without a change, leave the answer bit for bit the same? The control of every edit.
    """

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """A copy of the value."""
        return value.clone()
