"""The values that training data becomes: groups of examples about an image, packs of groups, and a batch of packs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from prismlens.training.examples import Example
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, eq=False)
class Group:
    """Examples about one image.

    Args:
        prefix: ids and segments of what they share: the turn's start and the image.
        examples: at least one.
        grid: rows and columns of image tokens.
        features: the image's merger outputs, or None where `pixels` go through the tower in every step.
        pixels: what the tower takes, ``[patch, pixel]``.
        grid_thw: the image's grid of patches, as the tower takes it.
    """

    prefix: tuple[tuple[int, ...], tuple[int, ...]]
    examples: tuple[Example, ...]
    grid: tuple[int, int]
    features: Float[Tensor, "image_token d_model"] | None = None
    pixels: Float[Tensor, "patch pixel"] | None = None
    grid_thw: Int[Tensor, " 3"] | None = None

    def __len__(self) -> int:
        return len(self.prefix[0]) + sum(map(len, self.examples))


@dataclass(frozen=True, eq=False)
class Pack:
    """One row of a batch: groups side by side, none of which sees another; `phase` and `seed` are those of its step."""

    groups: tuple[Group, ...]
    phase: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Packs in rows, ready for a forward.

    Args:
        unrolled: ids, segments, M-RoPE ids; ``steps`` numbers the slots of a row in the order of their columns.
        blocks: for every column its example, numbered over the row; -1 - group for the prefix of a group.
        groups: for every column its group in the row.
        labels: the token that the column should predict, IGNORE where there is none.
        facts: what is known of the object that the column names, IGNORE elsewhere.
        words: for every slot the first token of its example's answer, IGNORE where it cannot be known.
        slot_feature: for every slot its target's row among the image features of the batch; -1 where a row has fewer
            slots than another.
        slot_part: for every slot a number that is the same for slots of one (group, box, stage).
        sources: for every slot the column whose state becomes it.
        ends: for every stage of latents the (row, column) of its last slot, ``[stage, 2]``.
        free: for every example with free tokens their (row, column), ``[example, token, 2]``.
        cuts: where a forward over the batch may be cut so that every latent's source lies before its cut; the last is
            the number of columns. One cut only where rows are not laid out in waves.
        packs: number of packs.
        phase: of the step.
        seeds: of the rows' noise.
        ids: of the rows' items.
        image_features, pixels, grid_thw: those of all groups, in order; either the first or the others.
    """

    unrolled: Unrolled
    blocks: Int[Tensor, "batch pos"]
    groups: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]
    facts: Int[Tensor, "batch pos fact"]
    words: Int[Tensor, "batch slot"]
    slot_feature: Int[Tensor, "batch slot"]
    slot_part: Int[Tensor, "batch slot"]
    sources: Int[Tensor, "batch slot"]
    ends: Int[Tensor, "stage 2"]
    free: Int[Tensor, "example token 2"]
    cuts: tuple[int, ...]
    phase: int
    seeds: tuple[int, ...]
    ids: tuple[tuple[str, ...], ...]
    image_features: Float[Tensor, "image_token d_model"] | None
    pixels: Float[Tensor, "patch pixel"] | None
    grid_thw: Int[Tensor, "image 3"] | None

    @property
    def slots(self) -> Tensor:
        """True where a row has a slot, ``[batch, slot]``."""
        return self.slot_feature >= 0

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The batch with every tensor moved; what accelerate calls."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(*args, **kwargs)
            if isinstance(value, Unrolled):
                parts = {f.name: getattr(value, f.name) for f in fields(value)}
                return replace(value, **{k: moved(v) for k, v in parts.items() if isinstance(v, Tensor)})
            return value

        return replace(self, **{f.name: moved(getattr(self, f.name)) for f in fields(self)})
