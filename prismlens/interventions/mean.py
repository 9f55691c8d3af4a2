"""The operation that replaces by the site's mean; knows only its value and the measured mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import OVER, Context
from prismlens.interventions.operation import Operation, one_of, present


@dataclass(frozen=True)
class Mean(Operation):
    """Replace the value by the mean of its site over clean runs.

    Question: does what sets this item apart from the average item matter? What all items share stays.

    Args:
        over: one of `context.OVER`. ``"step"``, the default, takes away what is particular to the item and nothing
            else: a mean over several steps (``"stage"``, ``"all"``) also takes away what tells the steps apart, and is
            a vector that no step of any item resembles.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mean"})
    over: str = "step"

    def __post_init__(self) -> None:
        one_of("over", self.over, OVER)

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The mean of each selected pair's group."""
        return present(context.mean).to(value).expand_as(value).clone()
