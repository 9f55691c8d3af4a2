"""The losses, as pure functions of states, logits and targets; knows no model and no optimiser."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from prismlens.training.sequences import IGNORE


def text_loss(logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the columns that have a label."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def alignment_loss(
    states: Float[Tensor, "batch slot d_model"], targets: Float[Tensor, "batch slot d_model"]
) -> Float[Tensor, ""]:
    """Mean squared error, over slots and width, between the states that become latents and their targets.

    The second term of ``L = CE + lambda * MSE(h[p-1], v[p])``; in float32 whatever the model's dtype.
    """
    return F.mse_loss(states.float(), targets.float())


def place_loss(
    scores: Float[Tensor, "batch pos place"], places: Int[Tensor, "batch pos 2"], side: int
) -> Float[Tensor, ""]:
    """Cross-entropy of the row and of the column of the named object; scores hold `side` rows, then `side` columns."""
    row, column = scores.split(side, -1)
    losses = [
        F.cross_entropy(part.flatten(0, 1), places[..., i].flatten(), ignore_index=IGNORE)
        for i, part in enumerate((row, column))
    ]
    return torch.stack(losses).sum()
