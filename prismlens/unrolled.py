"""The unrolled item: one batch of whole sequences (prompt, latents, answer) and what sits at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from prismlens.errors import RoleError
from prismlens.types import Item


class Segment(IntEnum):
    """What a position belongs to. The values are stored in masks and must not change."""

    PAD = 0
    TEMPLATE = 1
    """System and user turn markers before the image, and around it."""
    IMAGE = 2
    QUESTION = 3
    OPTIONS = 4
    """The options and everything else in the user's turn after the question."""
    LEAD = 5
    """From the end of the user's turn to the start marker of the (first) latent block, marker included."""
    LATENT = 6
    ANSWER = 7
    """Everything after the (last) latent block, end markers included; everything generated where there is no block."""
    BETWEEN = 8
    """Everything between the first latent and the last that is not a latent: markers, free tokens, text."""


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A batch of finished (or partly finished) sequences.

    Prompts are padded on the left, so column ``n_prompt - 1`` is the last prompt position of every row; rows that
    stopped early are padded on the right. At latent positions ``input_ids`` holds the slot token's id and the input
    is a vector of ``latents`` instead of the token's embedding.

    Args:
        items: the items, one a row.
        input_ids: token ids.
        segments: `Segment` values; PAD where there is nothing.
        steps: index of the latent at each position (0, 1, ... over all stages), -1 elsewhere.
        patches: row and column of the image token in the merged grid, -1 elsewhere.
        grids: rows and columns of the merged grid of each item's image.
        position_ids: M-RoPE ids (temporal, height, width).
        latents: the vectors that were fed back, zero-padded over steps.
        n_latents: how many latents each row has; while the row is still being written, those that are sure to come too.
        n_prompt: number of prompt columns.
        answer_first: column of the first token of the answer's text (inside ``<answer>`` where the tag is present),
            -1 where the row has none.
        stages: index into `stage_names` at latents and at free tokens between them, -1 elsewhere; all -1 is a batch
            without named stages.
        stage_names: names of the stages of latents, in order, and perhaps of the free tokens.
        n_staged: how many positions of each stage each row has, those that are sure to come included; None once the
            rows are finished, when `stages` can be counted.
        as_written: what `segments` was at each position while it was the last; None where that is `segments` itself.
            Text that a row has written becomes part of the lead, or of what lies between, when the row enters latent
            mode (again) after it; who may see whom depends on what it was before.
    """

    items: tuple[Item, ...]
    input_ids: Int[Tensor, "batch pos"]
    segments: Int[Tensor, "batch pos"]
    steps: Int[Tensor, "batch pos"]
    patches: Int[Tensor, "batch pos 2"]
    grids: Int[Tensor, "batch 2"]
    position_ids: Int[Tensor, "3 batch pos"]
    latents: Float[Tensor, "batch step d_model"]
    n_latents: Int[Tensor, " batch"]
    n_prompt: int
    answer_first: Int[Tensor, " batch"]
    stages: Int[Tensor, "batch pos"]
    stage_names: tuple[str, ...] = ()
    n_staged: Int[Tensor, "batch stage"] | None = None
    as_written: Int[Tensor, "batch pos"] | None = None

    @property
    def valid(self) -> Bool[Tensor, "batch pos"]:
        """True where there is a position, False at padding."""
        return self.segments != Segment.PAD

    @property
    def blocks_before(self) -> Int[Tensor, "batch pos"]:
        """How many latent blocks have begun at each position or before it."""
        inside = self.segments == Segment.LATENT
        return (inside & ~F.pad(inside, (1, -1))).long().cumsum(1)

    @property
    def shape(self) -> tuple[int, int]:
        """Batch size and number of columns."""
        batch, pos = self.input_ids.shape
        return batch, pos

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.input_ids.device


def concatenate(parts: Sequence[Unrolled]) -> Unrolled:
    """Several finished batches as one: prompts padded further on the left, what follows and latents on the right.

    Raises:
        RoleError: the batches have stages of different names.
    """
    names = {part.stage_names for part in parts}
    if len(names) > 1:
        raise RoleError(
            f"batches with the stages {' and '.join(map(str, sorted(names)))} were joined",
            needed="the same stages in all",
            cause="they come from different models",
        )
    n_prompt = max(part.n_prompt for part in parts)
    after = max(part.shape[1] - part.n_prompt for part in parts)
    steps = max(part.latents.shape[1] for part in parts)
    pads = [(n_prompt - part.n_prompt, after - part.shape[1] + part.n_prompt) for part in parts]

    def columns(name: str, value: int) -> Tensor:
        """One of the ``[batch, pos, ...]`` fields of all parts, padded with `value`."""
        tensors = [getattr(part, name) for part in parts]
        padded = [
            F.pad(tensor, (0, 0) * (tensor.ndim - 2) + pad, value=value)
            for tensor, pad in zip(tensors, pads, strict=True)
        ]
        return torch.cat(padded)

    if any(part.as_written is not None for part in parts):
        parts = [replace(part, as_written=part.segments) if part.as_written is None else part for part in parts]
    firsts = [
        torch.where(part.answer_first >= 0, part.answer_first + left, -1)
        for part, (left, _) in zip(parts, pads, strict=True)
    ]
    return Unrolled(
        items=tuple(item for part in parts for item in part.items),
        input_ids=columns("input_ids", 0),
        segments=columns("segments", int(Segment.PAD)),
        steps=columns("steps", -1),
        patches=columns("patches", -1),
        grids=torch.cat([part.grids for part in parts]),
        position_ids=torch.cat([F.pad(part.position_ids, pad) for part, pad in zip(parts, pads, strict=True)], 1),
        latents=torch.cat([F.pad(part.latents, (0, 0, 0, steps - part.latents.shape[1])) for part in parts]),
        n_latents=torch.cat([part.n_latents for part in parts]),
        n_prompt=n_prompt,
        answer_first=torch.cat(firsts),
        stages=columns("stages", -1),
        stage_names=names.pop(),
        as_written=None if parts[0].as_written is None else columns("as_written", int(Segment.PAD)),
    )


def take(unrolled: Unrolled, rows: slice | Sequence[int]) -> Unrolled:
    """Some rows of a batch, in the given order, with the columns that only other rows needed left as padding."""
    picked = range(len(unrolled.items))[rows] if isinstance(rows, slice) else rows
    index = torch.tensor(list(picked), dtype=torch.long, device=unrolled.device)
    one_axis = ("input_ids", "segments", "steps", "patches", "grids", "latents", "n_latents", "answer_first", "stages")
    parts = {name: getattr(unrolled, name)[index] for name in one_axis}
    for name in ("n_staged", "as_written"):
        if getattr(unrolled, name) is not None:
            parts[name] = getattr(unrolled, name)[index]
    items = tuple(unrolled.items[i] for i in picked)
    return replace(unrolled, items=items, position_ids=unrolled.position_ids[:, index], **parts)
