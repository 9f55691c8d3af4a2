"""The losses, as pure functions of states, logits and targets; knows no model and no optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from prismlens.training.examples import IGNORE


def token_losses(logits: Float[Tensor, "token d_vocab"], labels: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Cross-entropy of every token, in float32; 0 where the label is IGNORE."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")


def squared_error(
    states: Float[Tensor, "slot d_model"], targets: Float[Tensor, "slot d_model"]
) -> Float[Tensor, " slot"]:
    """Mean over the width of the squared difference, per slot; in float32 whatever the model's dtype.

    The second term of ``L = CE + lambda * MSE(h[p-1], v[p])``.
    """
    return (states.float() - targets.float()).square().mean(-1)


def one_minus_cosine(
    states: Float[Tensor, "slot d_model"], targets: Float[Tensor, "slot d_model"]
) -> Float[Tensor, " slot"]:
    """1 - cos per slot, in float32."""
    return 1 - F.cosine_similarity(states.float(), targets.float(), dim=-1)


DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"mse": squared_error, "cosine": one_minus_cosine}
)
"""What `Variant.align` names."""


def part_weights(parts: Int[Tensor, "batch slot"], valid: Bool[Tensor, "batch slot"]) -> Float[Tensor, "batch slot"]:
    """Weights under which a sum over a row's slots is the published loss of its pack: one mean for each part, summed.

    Args:
        parts: the same number for the slots of one (group, box, stage) of a row.
        valid: where a row has a slot.
    """
    same = (parts[:, :, None] == parts[:, None, :]) & valid[:, None, :] & valid[:, :, None]
    return torch.where(valid, 1 / same.sum(-1).clamp(min=1), 0.0)


def row_weights(valid: Bool[Tensor, "batch column"]) -> Float[Tensor, "batch column"]:
    """Weights under which a sum over a row is the mean over its valid columns; 0 in rows without any."""
    return torch.where(valid, 1 / valid.sum(-1, keepdim=True).clamp(min=1), 0.0)


def diversity(states: Float[Tensor, "example token d_model"]) -> Float[Tensor, " example"]:
    """How alike an example's free tokens are: squared off-diagonal cosines of their states, averaged over all n x n
    entries of the Gram matrix (the diagonal counts as zeros), in float32."""
    unit = F.normalize(states.float(), dim=-1)
    gram = unit @ unit.transpose(1, 2)
    n = gram.shape[-1]
    return (gram * (1 - torch.eye(n, device=gram.device))).square().mean((1, 2))


def facts_loss(
    scores: Float[Tensor, "token score"], facts: Int[Tensor, "token fact"], sizes: Sequence[int]
) -> Float[Tensor, ""]:
    """Cross-entropy of every fact about the named objects, summed over facts and tokens.

    Args:
        scores: logits of all facts, side by side.
        facts: which value each fact has.
        sizes: how many values each fact can have.
    """
    losses = [
        F.cross_entropy(part.float(), facts[:, i], reduction="sum")
        for i, part in enumerate(scores.split(list(sizes), -1))
    ]
    return torch.stack(losses).sum()


def switch_loss(end_logits: Float[Tensor, " slot"], leaving: Bool[Tensor, " slot"]) -> Float[Tensor, " slot"]:
    """Binary cross-entropy of the end marker's logit, per position of the block, in float32: high where the block ends
    next, low elsewhere. For models that leave by a marker; with a learned end vector the distance of the last state to
    the vector takes its place."""
    return F.binary_cross_entropy_with_logits(end_logits.float(), leaving.float(), reduction="none")
