"""What a cosine to the own target is held against: others' targets, their mean, their ranks; knows no model.

Everything here is computed in double precision. ``candidate`` counts all items that have a target, ``item`` those whose
states were measured; ``own`` says which candidate an item is. Candidates of the item's own group never serve as a
floor: they may show the same image.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Retrieval(NamedTuple):
    """Where the own target stands among the candidates, by cosine.

    Args:
        rank: 1 is the nearest; of k candidates that are equally near each stands in the middle.
        candidates: how many there are, the own one included.
    """

    rank: Float[Tensor, "item step"]
    candidates: Int[Tensor, " item"]


def elsewhere(own: Int[Tensor, " item"], groups: Sequence[Hashable]) -> Bool[Tensor, "item candidate"]:
    """Which candidates belong to another group than the item."""
    codes = torch.from_numpy(pd.factorize(pd.Series(list(groups), dtype=object))[0])
    return codes[own][:, None] != codes[None, :]


def similarities(
    states: Float[Tensor, "item step d_model"], targets: Float[Tensor, "candidate step d_model"]
) -> Float[Tensor, "item candidate step"]:
    """Cosine of every item's state to every candidate's target of that step; NaN where either is the zero vector."""
    first, second = (x.double() / x.double().norm(dim=-1, keepdim=True) for x in (states, targets))
    return torch.einsum("isd,csd->ics", first, second)


def retrieval(
    near: Float[Tensor, "item candidate step"], own: Int[Tensor, " item"], groups: Sequence[Hashable]
) -> Retrieval:
    """Rank of the own target among itself and the targets of other groups.

    Args:
        near: from `similarities`.
        own: the candidate that each item is.
        groups: of the candidates.
    """
    others = elsewhere(own, groups)
    mine = near[torch.arange(len(own)), own][:, None, :]
    above = ((near > mine) & others[..., None]).sum(1)
    equal = ((near == mine) & others[..., None]).sum(1)
    rank = (1 + above + equal / 2).double().masked_fill(mine[:, 0].isnan(), math.nan)
    return Retrieval(rank, 1 + others.sum(1))


def chance_reciprocal_rank(candidates: Int[Tensor, " item"]) -> Float[Tensor, " item"]:
    """Expected reciprocal rank where every rank is equally likely: the n-th harmonic number divided by n."""
    harmonic = np.cumsum(1 / np.arange(1, int(candidates.max()) + 1))
    return torch.from_numpy(harmonic)[candidates - 1] / candidates


def mean_elsewhere(
    targets: Float[Tensor, "candidate step d_model"], own: Int[Tensor, " item"], groups: Sequence[Hashable]
) -> Float[Tensor, "item step d_model"]:
    """The mean target of all other groups, for each item; NaN where there is no other group."""
    others = elsewhere(own, groups).double()
    return torch.einsum("ic,csd->isd", others, targets.double()) / others.sum(1)[:, None, None]


def centred_cosine(
    states: Float[Tensor, "item step d_model"],
    targets: Float[Tensor, "candidate step d_model"],
    own: Int[Tensor, " item"],
    groups: Sequence[Hashable],
    *,
    seed: int,
) -> Float[Tensor, "item step"]:
    """Cosine after the mean target is taken off both vectors, each time that of other groups.

    Vectors of one kind share a mean, and two vectors that have nothing else in common are alike through it. The mean
    must not hold the own target, nor may one estimate of it be taken off both sides: its error would then be common to
    both, and a state that is the same for every item would come out alike to each. So the other groups are halved, one
    half's mean is taken off the state and the other half's off the target; the result is averaged over the two ways.
    It is 0 in expectation for a state that knows nothing of its item.

    Args:
        states: what the model emits.
        targets: of all candidates.
        own: the candidate that each item is.
        groups: of the candidates.
        seed: of the halving.

    Returns:
        NaN where a half has no other group: with fewer than four groups.
    """
    codes, names = pd.factorize(pd.Series(list(groups), dtype=object))
    order = np.random.default_rng(seed).permutation(len(names))
    first = torch.from_numpy(order[codes] < len(names) // 2)
    others = elsewhere(own, groups)
    means = []
    for half in (first, ~first):
        chosen = (others & half).double()
        means.append(torch.einsum("ic,csd->isd", chosen, targets.double()) / chosen.sum(1)[:, None, None])
    goal, state = targets.double()[own], states.double()
    ways = [_cosine(state - one, goal - other) for one, other in (means, means[::-1])]
    return (ways[0] + ways[1]) / 2


def _cosine(a: Float[Tensor, "item step d_model"], b: Float[Tensor, "item step d_model"]) -> Float[Tensor, "item step"]:
    """Cosine along the last axis; NaN for the zero vector."""
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
