"""From states and image features to the rows and lines of an `Alignment`; runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import prismlens.stats as stats
from prismlens.alignment.boxes import OtherBoxes, against_other_boxes, other_slots
from prismlens.alignment.floors import (
    centred_cosine,
    chance_reciprocal_rank,
    mean_elsewhere,
    retrieval,
    similarities,
)
from prismlens.alignment.geometry import cross_item_cosine, debiased_cka, gram, participation_ratio, rank
from prismlens.alignment.result import TARGET
from prismlens.metrics import cosine, mse
from prismlens.positions import box_tokens
from prismlens.trace.targets import ImageFeatures
from prismlens.types import Item


@dataclass(frozen=True, eq=False)
class Block:
    """The items of a measurement and what their latents are held against.

    Args:
        candidates: all items that have a target.
        features: of each candidate's image.
        items: those that are measured.
        others: item id -> id of the other item that it is compared with.
        stages: the stage of each latent step.
        seed: see `alignment`.
    """

    candidates: Sequence[Item]
    features: Sequence[ImageFeatures]
    items: Sequence[Item]
    others: Mapping[str, str]
    stages: Sequence[str]
    seed: int

    @cached_property
    def number(self) -> Mapping[str, int]:
        """Item id -> its candidate."""
        return {item.id: number for number, item in enumerate(self.candidates)}

    @cached_property
    def own(self) -> Int[Tensor, " item"]:
        """The candidate that each measured item is."""
        return torch.tensor([self.number[item.id] for item in self.items])

    @cached_property
    def targets(self) -> Float[Tensor, "candidate step d_model"]:
        """Every candidate's targets."""
        return torch.stack([found.targets for found in self.features]).float().cpu()

    @cached_property
    def groups(self) -> list[str]:
        """The group of each candidate."""
        return [item.group for item in self.candidates]

    @cached_property
    def boxes(self) -> list[Int[Tensor, "box step"]]:
        """The slots of the other boxes of each measured item."""
        out = []
        for item in self.items:
            found = self.features[self.number[item.id]]
            covered = {token for box in item.boxes for token in box_tokens(box, found.grid)}
            out.append(other_slots(found.slots, covered, found.grid))
        return out


def measure_rows(block: Block, mode: str, states: Float[Tensor, "item step d_model"]) -> list[dict[str, Any]]:
    """One row an item and step; the columns are those of `Alignment`."""
    states = states.float().cpu()
    columns = _columns(block, states)
    boxes = _boxes(block, states)
    out = []
    for number, item in enumerate(block.items):
        for step, stage in enumerate(block.stages):
            row = {"item": item.id, "group": item.group, "mode": mode, "step": step, "stage": stage}
            row |= {name: float(values[number, step]) for name, values in columns.items()}
            found = boxes[number]
            row |= {
                "cosine_box": float(found.best[step]), "boxes_below": float(found.below[step]), "boxes": found.boxes,
            }  # fmt: skip
            out.append(row | {"recall": float(row["rank"] == 1), "other": block.others[item.id]})
    return out


def _columns(block: Block, states: Float[Tensor, "item step d_model"]) -> Mapping[str, Float[Tensor, "item step"]]:
    """The measures that compare items with each other, and with their own targets."""
    own, groups, targets = block.own, block.groups, block.targets
    goal = targets[own]
    other = targets[[block.number[block.others[item.id]] for item in block.items]]
    mean = mean_elsewhere(targets, own, groups).to(states)
    found = retrieval(similarities(states, targets), own, groups)
    chance = {
        "candidates": found.candidates,
        "reciprocal_rank_chance": chance_reciprocal_rank(found.candidates),
        "recall_chance": 1 / found.candidates,
    }
    return {
        "cosine": cosine(states, goal), "cosine_other": cosine(states, other), "cosine_mean": cosine(states, mean),
        "mse": mse(states, goal), "mse_other": mse(states, other), "mse_mean": mse(states, mean),
        "centred": centred_cosine(states, targets, own, groups, seed=block.seed),
        "rank": found.rank, "reciprocal_rank": 1 / found.rank,
        **{name: values.double()[:, None].expand_as(found.rank) for name, values in chance.items()},
    }  # fmt: skip


def _boxes(block: Block, states: Float[Tensor, "item step d_model"]) -> list[OtherBoxes]:
    """Every item's states against the other boxes of its image."""
    out = []
    for item, own, others in zip(block.items, states, block.boxes, strict=True):
        found = block.features[block.number[item.id]]
        out.append(against_other_boxes(own, found.tokens.float().cpu(), found.slots, others))
    return out


def geometry_lines(block: Block, mode: str, vectors: Float[Tensor, "item step d_model"]) -> Iterator[dict[str, Any]]:
    """One line a step: how the items' vectors lie in space, with intervals that leave out a group at a time."""
    groups = [item.group for item in block.items]
    names = np.array(groups, dtype=object)
    for step, stage in enumerate(block.stages):
        own = gram(vectors[:, step].double().cpu().numpy())
        goal = gram(block.targets[block.own, step].double().numpy())

        def part(inner: Float[np.ndarray, "item item"], kept: Any) -> Float[np.ndarray, "kept kept"]:
            return inner[np.ix_(kept, kept)]

        smooth = {
            "cross_cosine": lambda kept, own=own: cross_item_cosine(part(own, kept), list(names[kept])),
            "participation_ratio": lambda kept, own=own: participation_ratio(part(own, kept)),
        }
        if mode != TARGET:
            smooth["cka"] = lambda kept, own=own, goal=goal: debiased_cka(part(own, kept), part(goal, kept))
        line: dict[str, Any] = {"mode": mode, "stage": stage, "step": step, "n": len(groups)}
        for name, statistic in smooth.items():
            interval = stats.jackknife_interval(statistic, groups)
            line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        yield {**line, "rank_90": rank(own)}
