"""The operation that gives each latent the image feature that it stands for; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, present


@dataclass(frozen=True)
class Oracle(Operation):
    """Replace the latent by its own target: the merger output of the image token in the item's box that it stands for.

    Question: would better latents help? With ``mode="held"`` this is teacher forcing. Which token a latent stands for
    is said by `positions.slot_tokens`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"targets"})

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The targets."""
        return present(context.targets).to(value, copy=True)
