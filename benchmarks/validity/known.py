"""What is held against the instrument: models of known mechanism, each with its items and what is true of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from mixtures import SHARES, WEIGHTS_SEEDS, mixture, planted
from routed import SHARES as ROUTED_SHARES

import prismlens as pl

SEEDS = (11, 12, 13)
"""Of the rendered items; neither training nor the shipped models' accuracy has seen them."""
N = 200
BATCH = 100


@dataclass(frozen=True)
class Known:
    """A model whose mechanism is known, with items.

    Args:
        model: what it is called on the page.
        items_seed: of the rendered items.
        expected: what is true of the vector and of the slot, in the words of the verdict.
        share: of all items, those whose answer can come through the injected vectors only.
        load: makes the model.
        items: makes the items.
        needs: says of a model and items which of these items they are; None where it is all or none.
    """

    model: str
    items_seed: int
    expected: tuple[str, str]
    share: float
    load: Callable[[], pl.PrismModel]
    items: Callable[[], Sequence[pl.Item]]
    needs: Callable[[pl.PrismModel, Sequence[pl.Item]], Sequence[bool]] | None = None


TRUTHS = {
    "bottleneck": (("load-bearing", "load-bearing"), 1.0),
    "slot": (("bypassed", "load-bearing"), 0.0),
    "bypass": (("bypassed", "bypassed"), 0.0),
}
"""Shipped model -> what its construction says of vector and slot, and the share of items that need the vectors."""


def rendered(seed: int, n: int = N) -> Sequence[pl.Item]:
    """Held-out rendered items."""
    return pl.load_items("shapes", n=n, seed=seed)


def shipped() -> dict[str, Known]:
    """The three models of known mechanism that ship, on three sets of items."""
    return {
        f"mechanism-{name}-{seed}": Known(
            f"tiny/{name}", seed, truth, share, lambda name=name: pl.load(f"tiny/{name}", batch_size=BATCH),
            lambda seed=seed: rendered(seed),
        )
        for seed in SEEDS
        for name, (truth, share) in TRUTHS.items()
    }  # fmt: skip


def mixed() -> dict[str, Known]:
    """Trained models under rules by which a share of items needs the vectors."""
    return {
        f"mixture-{weights}-{round(100 * share):03d}": Known(
            f"mixture {weights}", SEEDS[weights], _word(share), share,
            lambda weights=weights, share=share: mixture(weights, share, batch_size=BATCH),
            lambda weights=weights: rendered(SEEDS[weights]), partial(planted, share=share),
        )
        for weights in WEIGHTS_SEEDS
        for share in SHARES
    }  # fmt: skip


def nothing() -> dict[str, Known]:
    """Controls in which there is nothing to find, each made from the model that relies on its vectors most."""
    seed = SEEDS[0]
    undecided = ("undecided", "undecided")
    return {
        f"sanity-{name}": Known(what, seed, undecided, 0.0, load, items)
        for name, what, load, items in (
            ("weights", "bottleneck, weights shuffled", scrambled, lambda: rendered(seed)),
            ("labels", "bottleneck, labels shuffled", bottleneck, lambda: relabelled(rendered(seed), seed)),
            ("latents", "bottleneck, latents shuffled over items", crossed, lambda: rendered(seed)),
        )
    }


def bottleneck() -> pl.PrismModel:
    """The shipped model."""
    return pl.load("tiny/bottleneck", batch_size=BATCH)


def scrambled() -> pl.PrismModel:
    """The shipped model with the entries of every language-model matrix in random order: sizes and scales are kept."""
    model, draw = bottleneck(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.hf.model.language_model.parameters():
            values.copy_(values.flatten()[torch.randperm(values.numel(), generator=draw)].view_as(values))
    return model


def crossed() -> pl.PrismModel:
    """The shipped model, every item fed the latents of any item: a donor of its category would tell the category."""
    return bottleneck().edited(pl.Edit(pl.Swap(donor="anyone", image="any"), seed=1))


def relabelled(items: Sequence[pl.Item], seed: int) -> Sequence[pl.Item]:
    """The items with their answers exchanged at random."""
    order = np.random.default_rng(seed).permutation(len(items))
    return [replace(item, answer=items[other].answer) for item, other in zip(items, order, strict=True)]


def _word(share: float) -> tuple[str, str]:
    """What is true where a share of items needs the vectors; the slots hold nothing else, so it holds for both."""
    word = {0.0: "bypassed", 1.0: "load-bearing"}.get(share, "partly")
    return word, word


ROUTED = {
    f"routed-{seed}-{round(100 * share):03d}": (seed, share) for seed in SEEDS for share in ROUTED_SHARES
}  # fmt: skip
"""Mixtures of the rows of two shipped models: record -> seed of the items, share that needs the vectors."""
KNOWN: Mapping[str, Known] = {**shipped(), **mixed(), **nothing()}
"""Every model and set of items under the name of its record."""
