"""The operation that replaces by another item's value; does not choose the donor."""

from __future__ import annotations

from dataclasses import dataclass

from prismlens.errors import EditError
from prismlens.interventions.operation import one_of
from prismlens.interventions.transplant import Transplant

DONORS = ("any", "different-answer", "same-answer", "answer-in-options", "anyone", "self")
IMAGES = ("different", "any")


@dataclass(frozen=True)
class Swap(Transplant):
    """Replace the value by that of a donor item at the same stage and latent step.

    Question: does the value carry what is particular to this item, asked with a value that the model itself produces?
    With ``"different-answer"``: does the answer leave the item's own? With ``"same-answer"``: does anything but the
    answer matter? With ``"answer-in-options"``: does the answer become the donor's (the donor follow rate)?

    Args:
        donor: which answers (by content, not by letter) a donor may have: ``"any"``, ``"different-answer"``,
            ``"same-answer"``, ``"answer-in-options"``; in each case another item of the same category. ``"anyone"``
            asks for nothing: any category, and the item itself. ``"self"`` is the item itself, with ``image="any"``: a
            control, for it must change nothing, bit for bit. The choice is made by `match_donors`.
        image: ``"different"`` asks for a donor of another group, ``"any"`` does not.
        pool: how many items, drawn by the seed, donors come from; None for all there are.
    """

    donor: str = "any"
    image: str = "different"
    pool: int | None = None

    def __post_init__(self) -> None:
        one_of("donor", self.donor, DONORS)
        one_of("image", self.image, IMAGES)
        if self.donor == "self" and (self.image != "any" or self.pool is not None):
            raise EditError(
                f"Swap(donor='self', image={self.image!r}, pool={self.pool!r})",
                needed="image='any' and no pool",
                cause="an item's own image is never another one, and nobody is drawn",
                fix="write Swap(donor='self', image='any')",
            )
        whole = isinstance(self.pool, int) and not isinstance(self.pool, bool) and self.pool >= 1
        if self.pool is not None and not whole:
            raise EditError(f"pool={self.pool!r}", needed="a whole number of at least 1, or None for all items")

    def order(self, n: int, key: str) -> tuple[int, ...]:
        """The donor's value at the same place."""
        return tuple(range(n))
