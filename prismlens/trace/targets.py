"""The image features that latents are taught to resemble, for items with boxes; knows no edits and no runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import ItemError
from prismlens.models.latent import LatentModel
from prismlens.models.processor import LVRProcessor
from prismlens.models.stages import Stage
from prismlens.positions import enlarged, slot_tokens
from prismlens.types import Item


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What one item's latents are taught to resemble, and what surrounds it.

    Args:
        tokens: merger outputs of every image token, row by row.
        slots: the image token that each latent stands for (see `slot_tokens`).
        grid: rows and columns of image tokens.
    """

    tokens: Float[Tensor, "token d_model"]
    slots: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def targets(self) -> Float[Tensor, "step d_model"]:
        """The features that the latents stand for."""
        return self.tokens[torch.tensor(self.slots, device=self.tokens.device)]


@torch.no_grad()
def image_features(
    hf: LatentModel, processor: LVRProcessor, items: Sequence[Item], stages: Sequence[Stage]
) -> list[ImageFeatures]:
    """The features of each item's image, and which of them its latents stand for.

    Args:
        hf: the model.
        processor: its processor.
        items: with boxes; run through the vision tower in one batch.
        stages: of the latent block; each with its number of latents, and how much larger than the boxes it looks.

    Raises:
        ItemError: some items have no box.
    """
    boxless = [item.id for item in items if not item.boxes]
    if boxless:
        raise ItemError(
            f"{len(boxless)} of {len(items)} items have no box: {', '.join(map(repr, boxless[:5]))}",
            needed="boxes: the targets of latents are the image tokens inside them",
            fix="give `boxes=` as normalised xyxy, or leave these items out",
        )
    prompt = processor(items)
    features = hf.image_features(prompt.pixel_values.to(hf.device), prompt.image_grid_thw.to(hf.device))
    assert features is not None
    parts = features.split(prompt.grids.prod(1).tolist())
    grids = [(int(rows), int(columns)) for rows, columns in prompt.grids.tolist()]
    return [
        ImageFeatures(part, tuple(_slots(item, grid, stages)), grid)
        for part, item, grid in zip(parts, items, grids, strict=True)
    ]


def _slots(item: Item, grid: tuple[int, int], stages: Sequence[Stage]) -> list[int]:
    """The image tokens that an item's latents stand for, stage after stage."""
    out: list[int] = []
    for stage in stages:
        out += slot_tokens([enlarged(box, stage.scale) for box in item.boxes], grid, stage.steps)
    return out
