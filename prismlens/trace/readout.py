"""The weights of a model that its caches decompose with; the one place that knows where they lie in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prismlens.cache import BlockWeights, Readout
from prismlens.models.latent import LatentModel


def readout_of(model: LatentModel, weights: str = "") -> Readout:
    """The model's norms and matrices, by reference: nothing is copied.

    Args:
        model: the model.
        weights: hash of its weights.
    """
    language: Any = model.decoder
    d_head = language.layers[0].self_attn.head_dim
    blocks = []
    for layer in language.layers:
        attention, down = layer.self_attn.o_proj, layer.mlp.down_proj
        W_O = attention.weight.detach().T.unflatten(0, (-1, d_head))
        blocks.append(
            BlockWeights(
                layer.input_layernorm.weight.detach(), W_O, _bias(attention), down.weight.detach().T, _bias(down)
            )
        )
    head: nn.Linear = model.lm_head
    return Readout(
        tuple(blocks),
        language.norm.weight.detach(),
        float(language.norm.variance_epsilon),
        head.weight.detach().T,
        _bias(head),
        weights,
    )


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()
