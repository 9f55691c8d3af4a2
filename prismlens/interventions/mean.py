"""The operation that replaces by the site's mean; knows only its value and the measured mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, present


@dataclass(frozen=True)
class Mean(Operation):
    """Replace the value by the mean of its site over clean runs.

    Question: does what sets this item apart from the average item matter? What all items and all
    selected positions share stays.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mean"})

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The mean, once for each selected pair."""
        return present(context.mean).to(value).expand_as(value).clone()
