"""The losses, as pure functions of states, logits and targets; knows no model and no optimiser."""

from __future__ import annotations

from collections.abc import Sequence

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


def facts_loss(
    scores: Float[Tensor, "batch pos score"], facts: Int[Tensor, "batch pos fact"], sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Cross-entropy of every fact about the named object, summed over facts.

    The mean over the columns that name an object, 0 where none does.

    Args:
        scores: logits of all facts, side by side.
        facts: which value each fact has, IGNORE at columns that name nothing.
        sizes: how many values each fact can have.
    """
    losses = [
        F.cross_entropy(part.flatten(0, 1), facts[..., i].flatten(), ignore_index=IGNORE, reduction="sum")
        for i, part in enumerate(scores.split(list(sizes), -1))
    ]
    return torch.stack(losses).sum() / (facts[..., 0] != IGNORE).sum().clamp(min=1)
