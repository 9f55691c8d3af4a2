"""What distinguishes the tiny models, as one table: latents, visibility, and the lessons that each is taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENT_STEPS = 4


@dataclass(frozen=True)
class Lesson:
    """One stretch of training with its own optimiser and learning rate, warmed up and then falling as a cosine.

    Args:
        steps: optimiser steps.
        inputs: what the slots are fed: ``"target"`` (teacher forcing), ``"uninformative"`` (zeros, noise, or other
            scenes' targets), ``"foreign"`` (mostly what the model emits on other scenes), ``"own"`` (the model's own
            latents, gradient through the loop).
        lam: weight of the alignment loss.
        words: also read the answer's word off every slot, with a throw-away head before the last layer.
        lr: peak learning rate.
        scenes: scenes a batch.
        mix: questions of each kind about each scene.
    """

    steps: int
    inputs: str = "target"
    lam: float = 0.0
    words: bool = False
    lr: float = 1e-3
    scenes: int = 24
    mix: tuple[tuple[str, int], ...] = (("attribute", 3), ("relation", 2))


@dataclass(frozen=True)
class Variant:
    """One way to train a model from the base.

    Args:
        name: the model is shipped as ``tiny/<name>``.
        mechanism: what is known about it, in one sentence.
        lessons: in order.
        latents: whether there is a latent block.
        visibility: attention rules, kept in the checkpoint's config.
        parent: the model whose weights it starts from.
        ships: whether it is one of the shipped models, and not only a stage on the way to one.
    """

    name: str
    mechanism: str
    lessons: tuple[Lesson, ...]
    latents: bool = True
    visibility: tuple[dict[str, Any], ...] = ()
    parent: str = "base"
    ships: bool = True


_HIDDEN = {"options": ("template", "image", "question"), "answer": ("template", "image", "question", "lead")}
BLIND: tuple[dict[str, Any], ...] = tuple({"query": q, "key": k} for q, keys in _HIDDEN.items() for k in keys)
"""Options and everything after the block see neither image nor question, nor anything that could carry them."""

BASE = Variant(
    "base",
    "no latents; what all others start from",
    (
        Lesson(450, lr=2e-3, mix=(("attribute", 4), ("relation", 4))),
        Lesson(200, lr=1e-3, mix=(("match", 8),)),
        Lesson(400, lr=1e-3, mix=(("attribute", 4), ("relation", 3), ("match", 2))),
    ),
    latents=False,
)

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("sft", "no latents; as many steps as the others", (Lesson(500),), latents=False),
        Variant("lvr", "trained with the alignment loss; what it uses is to be found out", (Lesson(500, lam=3.0),)),
        Variant(
            "bypass",
            "neither the injected vectors nor the slots are used: nothing after the block attends to it",
            (Lesson(500, lam=3.0),),
            visibility=({"query": "answer", "key": "latent"},),
        ),
        Variant(
            "slot-draft",
            "the first stage of slot",
            (
                Lesson(500, inputs="uninformative", words=True, scenes=48, mix=(("attribute", 2), ("relation", 3))),
                Lesson(60, inputs="foreign", words=True, scenes=48, lr=5e-4),
            ),
            visibility=BLIND,
            ships=False,
        ),
        Variant(
            "slot",
            "the slots' keys and values carry the answer, the injected vectors do not: "
            "what follows sees only slots and options, and training fed the slots vectors without information",
            (Lesson(150, inputs="foreign", words=True, scenes=48, lr=5e-4),),
            visibility=BLIND,
            parent="slot-draft",
        ),
        Variant(
            "bottleneck",
            "the injected vectors carry the answer: what follows sees only options, and slots at layer 0 alone, "
            "where they hold nothing but the vector",
            (Lesson(100, lam=3.0), Lesson(400, inputs="own")),
            visibility=(*BLIND, {"query": "answer", "key": "latent", "layers": [1, 2, 3]}),
        ),
    )
}
"""Variants by name, in the order in which they are built. All have 500 steps from the base, but `slot`: 710 in two
stages, without the last of which the vectors that it emits itself still disturb it."""
