"""How long latents are beside image and text embeddings; says nothing about where they point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.alignment.result import FORCED, FREE, TARGET
from prismlens.alignment.rows import Block
from prismlens.trace import PrismModel, Run
from prismlens.unrolled import Segment

KINDS = {FREE: "latent, free", FORCED: "latent, teacher-forced", TARGET: "target"}
NOT_TEXT = (Segment.PAD, Segment.IMAGE, Segment.LATENT, Segment.ANSWER)


def lengths(
    model: PrismModel, run: Run, block: Block, vectors: Mapping[str, Float[Tensor, "item step d_model"]]
) -> Iterator[dict[str, Any]]:
    """One row an item and kind: the mean Euclidean norm of its vectors of that kind.

    ``"image"``: the features of the whole image as the decoder gets them. ``"text"``: the embeddings of the prompt's
    other tokens, the template's included.
    """
    norms = {KINDS[mode]: values.float().norm(dim=-1).mean(1) for mode, values in vectors.items()}
    norms["image"] = torch.stack(
        [block.features[number].tokens.float().norm(dim=-1).mean() for number in block.own.tolist()]
    )
    norms["text"] = _text_norms(model, run)
    for kind, values in norms.items():
        for item, value in zip(block.items, values.tolist(), strict=True):
            yield {"item": item.id, "group": item.group, "kind": kind, "norm": value}


@torch.no_grad()
def _text_norms(model: PrismModel, run: Run) -> Float[Tensor, " item"]:
    """Mean norm of the embeddings of each prompt's text tokens."""
    embeddings = model.hf.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    each = embeddings.weight.float().norm(dim=-1)
    segments, ids = run.unrolled.segments, run.unrolled.input_ids
    text = ~torch.isin(segments, torch.tensor([int(kind) for kind in NOT_TEXT], device=segments.device))
    return (each[ids] * text).sum(1) / text.sum(1)
