"""The structural operation that ends the latent block early; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from prismlens.errors import EditError
from prismlens.interventions.operation import Structural


@dataclass(frozen=True)
class Skip(Structural):
    """The last n latents of the block are not produced; with all of them skipped only its markers are left.

    Question: how many latents are needed? Nothing stands in for a skipped latent: no vector, no slot token, no keys and
    values. In a block of several stages the last latents of the whole block go first, and a stage that lost all of its
    own still has its markers. Steps keep their numbers, 0 to K - n - 1, and roles name what is there: ``latent[-1]`` is
    the last latent that was produced. In held mode the clean latents are fed up to there. Skips of one view add up.

    Args:
        n: how many, at least 1, and at most as many as the block has.
        keep_positions: True: what follows has the position ids that it has in a full block, so that only the latents
            are gone: where nothing reads them, nothing changes. False: it moves forward by n, as in a run with a budget
            of K - n (``generate(latent_steps=...)``). A model trained with K latents may break by the move alone.
    """

    n: int
    keep_positions: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise EditError(f"Skip(n={self.n!r})", needed="a whole number of at least 1")
        if not isinstance(self.keep_positions, bool):
            raise EditError(f"Skip(keep_positions={self.keep_positions!r})", needed="True or False")
