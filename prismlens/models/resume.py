"""The upper decoder layers alone, from a residual stream that is already known; knows no tokens and no images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from prismlens.models.visibility import LayerMasks


@dataclass(frozen=True, eq=False)
class Resume:
    """Where a forward goes on.

    Args:
        layer: the first decoder layer that runs.
        hidden: the residual stream as it enters that layer, at the forward's columns.
    """

    layer: int
    hidden: Float[Tensor, "batch query d_model"]


def run_from(
    language: nn.Module,
    resume: Resume,
    position_ids: Int[Tensor, "3 batch query"],
    attention_mask: LayerMasks,
    past_key_values: Cache | None,
) -> Float[Tensor, "batch query d_model"]:
    """Final-norm states after the layers from ``resume.layer`` on, as the whole text model computes them.

    Args:
        language: the decoder of a `LatentModel`.
        resume: layer and states.
        position_ids: M-RoPE ids of the columns.
        attention_mask: one mask a layer, for all layers.
        past_key_values: keys and values of earlier columns, where there are any; of the layers that run only.
    """
    hidden = resume.hidden
    rotary: Any = language.rotary_emb
    embeddings = rotary(hidden, position_ids)
    layers: Any = language.layers
    for layer in list(layers)[resume.layer :]:
        hidden = layer(
            hidden,
            attention_mask=attention_mask[0],
            layer_masks=attention_mask,
            position_embeddings=embeddings,
            position_ids=None,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        )
    norm: Any = language.norm
    return norm(hidden)
