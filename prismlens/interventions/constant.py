"""The operation that replaces by a given vector; knows only its vector."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, same_width
from prismlens.interventions.values import Numbers, Values, frozen


@dataclass(frozen=True)
class Constant(Operation):
    """Replace the value by one vector, the same for every item and position.

    Question: is any input of the right kind as good? With a latent of one item, or a learned vector, the answer says
    more than zeros do: the vector can be one that the model knows.

    Args:
        vector: ``[d]``, as wide as the site.
    """

    vector: Numbers

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", Values.of("Constant(vector)", self.vector, 1))

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The vector, once for each selected pair."""
        vector = frozen(self.vector)
        same_width(self, vector.shape[0], value)
        return vector.like(value).expand_as(value).clone()
