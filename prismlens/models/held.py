"""The latents of a clean run, fed again block by block; knows nothing of how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prismlens.errors import SettingError
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled


def block_lengths(run: Unrolled) -> Int[Tensor, "batch block"]:
    """How many latents each block of each row has; a row with fewer blocks than others has 0 in the rest."""
    latent = run.segments == Segment.LATENT
    first = latent.clone()
    first[:, 1:] &= ~latent[:, :-1]
    number = first.long().cumsum(1) - 1
    blocks = max(1, int(number.max()) + 1)
    return torch.stack([(latent & (number == block)).sum(1) for block in range(blocks)], 1)


@dataclass(frozen=True, eq=False)
class Held:
    """Latents to feed in place of the model's own.

    Args:
        latents: in order, over all blocks.
        blocks: how many of them belong to each block of each row; None where every row has as many as `latents` is wide
            and it does not matter how they are split.
        rows: the rows that are held; None where all are. The others go their own way.
    """

    latents: Float[Tensor, "batch step d_model"]
    blocks: Int[Tensor, "batch block"] | None = None
    rows: Bool[Tensor, " batch"] | None = None

    def spent(self, block: Int[Tensor, " batch"], in_block: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"] | None:
        """Whether the block that the row is in has no more latents; None where the blocks are not known."""
        return None if self.blocks is None else in_block >= self._length(block)

    def feed(
        self,
        items: Sequence[Item],
        wanted: Bool[Tensor, " batch"],
        taken: Int[Tensor, " batch"],
        block: Int[Tensor, " batch"],
        in_block: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch d_model"]:
        """The next latent of each row, where one is wanted.

        Args:
            items: one a row.
            wanted: rows whose next input is a latent.
            taken: latents fed so far.
            block: number of the row's present block.
            in_block: latents fed in it.

        Raises:
            SettingError: a row wants more latents than its clean run has.
        """
        rows = torch.arange(len(wanted), device=wanted.device)
        step, over = taken, taken >= self.latents.shape[1]
        if self.blocks is not None:
            before = self.blocks.cumsum(1) - self.blocks
            step = before[rows, block.clamp(max=self.blocks.shape[1] - 1)] + in_block
            over = in_block >= self._length(block)
        if bool((wanted & over).any()):
            ids = [items[row].id for row in (wanted & over).nonzero().flatten().tolist()]
            raise SettingError(
                f"held latents for {self.latents.shape[1]} steps, too few for {len(ids)} items: {', '.join(ids[:5])}",
                needed=f"latent {int(taken[wanted & over].max())} too",
                cause="the clean run had a smaller latent budget, or never entered a block that these items enter now",
                fix="make the clean run with the same settings; for items that enter by themselves use a free edit",
            )
        return self.latents[rows, step.clamp(max=self.latents.shape[1] - 1)]

    def _length(self, block: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """How many latents each row's present block has; 0 where the clean run had no such block."""
        assert self.blocks is not None
        rows = torch.arange(len(block), device=block.device)
        known = block < self.blocks.shape[1]
        return torch.where(known, self.blocks[rows, block.clamp(0, self.blocks.shape[1] - 1)], 0)
