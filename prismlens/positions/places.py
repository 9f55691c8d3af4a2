"""Which place of its item a position is, so that two runs can be matched position by position; knows no values."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prismlens.unrolled import Unrolled

OUTSIDE = -1
"""The group of the positions that are not latents."""
Place: TypeAlias = tuple[int, int]
"""Group and number: a latent's stage and its step within that stage; outside latents `OUTSIDE` and its number among the
role's positions."""


def places(run: Unrolled, mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos 2"]:
    """The place of every position; outside latents only those in the mask have a meaning.

    Latents are counted from the row's first latent of their stage, whether the mask holds it or not: a role such as
    ``latent[-1]`` names another step in a shorter block, and the two must not match.
    """
    latent = run.steps >= 0
    group = torch.where(latent, run.stages.clamp(min=0), OUTSIDE)
    number = (mask & ~latent).long().cumsum(1) - 1
    for stage in range(int(group.max()) + 1):
        here = group == stage
        number = torch.where(here, here.long().cumsum(1) - 1, number)
    return torch.stack((group, number), -1)


def named(place: Place) -> str:
    """A place in words."""
    group, number = place
    return f"position {number} of the role" if group == OUTSIDE else f"latent {number} of stage {group}"
