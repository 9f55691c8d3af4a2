"""The operation that replaces by another item's value; does not choose the donor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, one_of, present

DONORS = ("any", "different-answer", "same-answer", "answer-in-options")
IMAGES = ("different", "any")


@dataclass(frozen=True)
class Swap(Operation):
    """Replace the value by that of a donor item at the same latent step.

    Question: does the value carry what is particular to this item, asked with a value that the model itself produces?
    With ``"different-answer"``: does the answer leave the item's own? With ``"same-answer"``: does anything but the
    answer matter? With ``"answer-in-options"``: does the answer become the donor's (the donor follow rate)?

    Args:
        donor: which answers (by content, not by letter) a donor may have: ``"any"``, ``"different-answer"``,
            ``"same-answer"``, ``"answer-in-options"``. The choice is made by `match_donors`.
        image: ``"different"`` asks for a donor of another group, ``"any"`` does not.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"donors"})
    donor: str = "any"
    image: str = "different"

    def __post_init__(self) -> None:
        one_of("donor", self.donor, DONORS)
        one_of("image", self.image, IMAGES)

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The donors' values."""
        return present(context.donors).to(value, copy=True)
