"""The operation that permutes an item's own values over its positions; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prismlens.errors import EditError
from prismlens.interventions.transplant import Transplant, seeded


@dataclass(frozen=True)
class Shuffle(Transplant):
    """Replace the value by that of another step of the same item.

    Question: does the order of the latents matter, or only which ones there are?

    The values are those of the item's clean run, so that all are known at the first step: in free mode latent k gets
    clean latent pi(k), while what the model itself emits goes on from there. The permutation pi is drawn from the
    edit's seed and the item's id, evenly among those that leave no step in its place. It stays inside a stage.
    """

    def order(self, n: int, key: str) -> tuple[int, ...]:
        """A permutation without a fixed point."""
        if n < 2:
            raise EditError(
                f"{self} was asked for at {n} position of an item",
                needed="at least 2 positions of one stage",
                cause="one value alone has no order",
                fix="choose more positions, for example latent",
            )
        generator = seeded(key)
        while True:  # about one permutation in e has no fixed point
            drawn = tuple(torch.randperm(n, generator=generator).tolist())
            if all(place != number for number, place in enumerate(drawn)):
                return drawn
