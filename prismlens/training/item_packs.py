"""Items with boxes as training data: how they are shuffled and packed, and each pack made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from prismlens.errors import ItemError
from prismlens.training.batch import Group, Pack
from prismlens.training.variants import Variant


@dataclass(frozen=True, eq=False)
class ItemPacks:
    """Packs of items; pack `i` is a pure function of the seed and of `i`.

    Args:
        group: makes the group of an item, by its number.
        packs: which items are in which pack, epoch after epoch.
        variant: says which phase a step belongs to.
        batch: packs an optimiser step.
        seed: of the noise.
    """

    group: Callable[[int], Group]
    packs: Sequence[Sequence[int]]
    variant: Variant
    batch: int
    seed: int

    def __len__(self) -> int:
        return self.variant.steps * self.batch

    def __getitem__(self, index: int) -> Pack:
        noise = np.random.default_rng([self.seed, 1, index]).integers(2**62)
        groups = tuple(self.group(number) for number in self.packs[index])
        return Pack(groups, self.variant.phase_at(index // self.batch), int(noise))


def plan_packs(
    lengths: Int[np.ndarray, " item"], count: int, *, most_items: int, most_tokens: int, seed: int
) -> list[list[int]]:
    """The items of the first `count` packs: each epoch in its own order, filled one after the other.

    A pack is closed when the next item would be one too many or would make it too long; no item is left out, and an
    epoch ends with a pack of its own.

    Args:
        lengths: columns that each item needs.
        count: how many packs.
        most_items, most_tokens: limits of a pack.
        seed: of the orders.

    Raises:
        ItemError: no items, or one that is longer than a pack may be.
    """
    if not len(lengths):
        raise ItemError("no items to train on", needed="at least one")
    if int(lengths.max()) > most_tokens:
        longest = int(lengths.argmax())
        raise ItemError(
            f"item number {longest} needs {int(lengths[longest])} columns",
            needed=f"at most {most_tokens}, the limit of a pack",
            cause="a large image, or a box with many tokens",
            fix="raise pack_tokens, lower the processor's max_pixels, or use a budget of latents",
        )
    packs: list[list[int]] = []
    epoch = 0
    while len(packs) < count:
        packs += _epoch(lengths, np.random.default_rng([seed, 0, epoch]), most_items, most_tokens)
        epoch += 1
    return packs[:count]


def _epoch(lengths: np.ndarray, rng: np.random.Generator, most_items: int, most_tokens: int) -> list[list[int]]:
    """One pass over all items."""
    packs: list[list[int]] = [[]]
    filled = 0
    for number in rng.permutation(len(lengths)).tolist():
        if packs[-1] and (len(packs[-1]) == most_items or filled + int(lengths[number]) > most_tokens):
            packs.append([])
            filled = 0
        packs[-1].append(number)
        filled += int(lengths[number])
    return packs
