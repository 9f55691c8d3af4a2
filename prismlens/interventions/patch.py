"""The operation that puts in values of another run, perhaps of another model; knows only what it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, present
from prismlens.interventions.source import Source


@dataclass(frozen=True)
class Patch(Operation):
    """Replace the value by that of another run, for the same item at the same position of the role.

    Question: is what the other run has here enough to give its answer (a clean run into a broken one), or needed (a
    broken one into a clean one)? With the latents of another model: do the two models mean the same by them?

    Args:
        source: values by site and item; see `Source.latents` and `Source.activations`. At latents the step and the
            number of the stage have to match; elsewhere the order of the role's positions, so the source has to be read
            at the role that the edit has.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    source: Source

    def __post_init__(self) -> None:
        if not isinstance(self.source, Source):
            raise EditError(
                f"Patch({type(self.source).__name__})",
                needed="a Source",
                cause="a run or a tensor was given as it is",
                fix="write Patch(Source.latents(name, run.unrolled)), or Source.activations(name, cache)",
            )

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The source's values."""
        return present(context.source).to(value, copy=True)

    def __str__(self) -> str:
        return f"Patch({self.source})"
