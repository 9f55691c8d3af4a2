"""The best other box of the same image: is a latent nearer to its own region than to the rest? Knows no model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class OtherBoxes(NamedTuple):
    """An item's own box against others of its image.

    Args:
        best: cosine to the target at each step that the best other box would have; NaN where there is no other box.
        below: share of the other boxes whose cosine at that step is smaller than the own box's, ties by half: 0.5 is
            chance, 1 means that the own box is nearer than any other.
        boxes: number of other boxes.
    """

    best: Float[Tensor, " step"]
    below: Float[Tensor, " step"]
    boxes: int


def other_slots(slots: Sequence[int], covered: Collection[int], grid: tuple[int, int]) -> Int[Tensor, "box step"]:
    """The slots of every box of the same shape elsewhere in the image, none of whose tokens lies in the own box.

    The own box is moved by whole tokens, to every place where it and all slots stay inside the image.

    Args:
        slots: the image token that each latent stands for.
        covered: the image tokens of the own box, or boxes, which are moved together.
        grid: rows and columns of image tokens.
    """
    columns = grid[1]
    mine = set(covered)
    cells = [divmod(token, columns) for token in mine.union(slots)]
    down, right = ([cell[axis] for cell in cells] for axis in (0, 1))
    moves = (
        row * columns + column
        for row in range(-min(down), grid[0] - max(down))
        for column in range(-min(right), columns - max(right))
    )
    moved = [[slot + move for slot in slots] for move in moves if mine.isdisjoint(token + move for token in mine)]
    return torch.tensor(moved, dtype=torch.long).reshape(len(moved), len(slots))


def against_other_boxes(
    states: Float[Tensor, "step d_model"],
    tokens: Float[Tensor, "token d_model"],
    slots: Sequence[int],
    others: Int[Tensor, "box step"],
) -> OtherBoxes:
    """Cosines of a block's states to its own box and to others; the best other is that of the highest mean over steps.

    The best of many is a hard floor: where latents mean nothing, the best other box wins. `OtherBoxes.below` is fair.

    Args:
        states: what would become the latents.
        tokens: the features of the whole image.
        slots: the tokens of the own box that the latents stand for.
        others: from `other_slots`.
    """
    if not len(others):
        missing = torch.full((len(slots),), math.nan, dtype=torch.float64)
        return OtherBoxes(missing, missing, 0)
    first, second = (x.double() / x.double().norm(dim=-1, keepdim=True) for x in (states, tokens))
    near = first @ second.T
    step = torch.arange(len(slots))
    own, rest = near[step, torch.tensor(slots)], near[step, others]
    below = (rest < own).double().mean(0) + (rest == own).double().mean(0) / 2
    return OtherBoxes(rest[rest.mean(1).argmax()], below.masked_fill(own.isnan(), math.nan), len(others))
