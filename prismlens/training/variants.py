"""What distinguishes the tiny models, as one table: latents, loss weights, inputs at the slots, visibility."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENT_STEPS = 4

_BLIND: tuple[dict[str, Any], ...] = tuple(
    {"query": query, "key": key}
    for query in ("options", "answer")
    for key in ("template", "image", "question", "lead")
    if (query, key) != ("options", "lead")
)
"""Options and everything after the block see neither image nor question, nor anything that could carry them."""


@dataclass(frozen=True)
class Variant:
    """One way to train a model from the base.

    Args:
        name: the model is shipped as ``tiny/<name>``.
        answer: the mechanism, in one sentence, where it is known by construction.
        latents: whether there is a latent block.
        lam: weight of the alignment loss.
        inputs: what the slots are fed in training: ``"target"`` (teacher forcing), ``"uninformative"`` (zeros,
            noise or other questions' targets), ``"own"`` (the model's own latents, gradient through the loop).
        visibility: attention rules, kept in the checkpoint's config.
        steps, lr: length and peak learning rate.
        scenes, mix: scenes a batch, and questions of each kind a scene.
    """

    name: str
    answer: str = ""
    latents: bool = True
    lam: float = 0.0
    inputs: str = "target"
    visibility: tuple[dict[str, Any], ...] = ()
    steps: int = 500
    lr: float = 1e-3
    scenes: int = 24
    mix: tuple[tuple[str, int], ...] = (("attribute", 3), ("relation", 2))


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("sft", "no latents at all", latents=False),
        Variant("lvr", "", lam=3.0),
        Variant(
            "bypass", "neither the vectors nor the slots are used", lam=3.0,
            visibility=({"query": "answer", "key": "latent"},),
        ),
        Variant("slot", "the slots are needed, the vectors are not", inputs="uninformative", visibility=_BLIND),
        Variant(
            "bottleneck", "the vectors carry the answer", lam=1.0, inputs="own",
            visibility=(*_BLIND, {"query": "answer", "key": "latent", "layers": [1, 2, 3]}),
        ),
    )
}  # fmt: skip
"""Variants by name, in the order in which they are built."""
