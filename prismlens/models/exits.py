"""When a stage of latents ends before its budget is spent: the rules, as functions of one moment; knows no loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Moment:
    """What a rule may look at, right after a latent was fed.

    Args:
        choice: the token that the logits at the latent prefer.
        fed: the vector that was fed, before any edit of it.
        end_ids: ids of the end markers.
        end_vector: the learned end vector, where the model has one.
        distance: a name of `DISTANCES`.
        threshold: below it a vector counts as the end vector.
    """

    choice: Int[Tensor, " batch"]
    fed: Float[Tensor, "batch d_model"]
    end_ids: tuple[int, ...]
    end_vector: Float[Tensor, " d_model"] | None
    distance: str
    threshold: float


def squared(vectors: Float[Tensor, "batch d_model"], end: Float[Tensor, " d_model"]) -> Float[Tensor, " batch"]:
    """The mean squared difference over dimensions."""
    return (vectors - end).square().mean(-1)


def absolute(vectors: Float[Tensor, "batch d_model"], end: Float[Tensor, " d_model"]) -> Float[Tensor, " batch"]:
    """The mean absolute difference over dimensions."""
    return (vectors - end).abs().mean(-1)


def angular(vectors: Float[Tensor, "batch d_model"], end: Float[Tensor, " d_model"]) -> Float[Tensor, " batch"]:
    """One minus the cosine."""
    return 1 - F.cosine_similarity(vectors, end[None], dim=-1)


DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"mse": squared, "mae": absolute, "cosine": angular}
)
"""Distances to the end vector, in single precision, under the names of the released code's criteria."""


def never(moment: Moment) -> Bool[Tensor, " batch"]:
    """The budget alone decides."""
    return torch.zeros_like(moment.choice, dtype=torch.bool)


def end_token(moment: Moment) -> Bool[Tensor, " batch"]:
    """The logits at the latent prefer an end marker."""
    return torch.isin(moment.choice, torch.tensor(moment.end_ids, dtype=torch.long, device=moment.choice.device))


def end_vector(moment: Moment) -> Bool[Tensor, " batch"]:
    """The latent that was fed is nearer to the learned end vector than the threshold.

    As in the released code the near vector is fed too, in the place of the end marker whose embedding it was trained to
    resemble, so a stage has at least one latent, and what follows is read off the state at the near vector.
    """
    assert moment.end_vector is not None
    return DISTANCES[moment.distance](moment.fed.float(), moment.end_vector.float()) < moment.threshold


EXITS: Mapping[str, Callable[[Moment], Tensor]] = MappingProxyType(
    {"fixed": never, "end_token": end_token, "end_vector": end_vector}
)
"""Rules by the names that a configuration gives them; under each, a spent budget ends the stage too."""
