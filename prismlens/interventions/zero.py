"""The operation that replaces by zeros; knows only its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation


@dataclass(frozen=True)
class Zero(Operation):
    """Replace the value by zeros.

    Question: is anything that the value carries needed, its mere norm included? Zeros are far from what the model has
    seen, and their keys and values are not zero (projections have biases): read it beside `Mean` and `Swap`.
    """

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """Zeros."""
        return torch.zeros_like(value)
