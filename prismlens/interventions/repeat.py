"""The operation that gives every position the value of the first; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from prismlens.errors import EditError
from prismlens.interventions.transplant import Transplant


@dataclass(frozen=True)
class Repeat(Transplant):
    """Replace the value by the item's own first one, of the selected positions and of the same stage.

    Question: does anything that later latents add to the first one matter? The first value is that of the item's clean
    run, which a free run has too where nothing before it is edited.
    """

    def order(self, n: int, key: str) -> tuple[int, ...]:
        """The first place, n times."""
        if n < 2:
            raise EditError(
                f"{self} was asked for at {n} position of an item",
                needed="at least 2 positions of one stage",
                cause="the first value would be put where it is already",
                fix="choose more positions, for example latent",
            )
        return (0,) * n
