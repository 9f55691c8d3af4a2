"""How long, how fast and how precisely to train, apart from what is taught; knows no variant and no data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from prismlens.errors import SettingError
from prismlens.training.protocol import FAIR, Protocol


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of one run.

    Args:
        steps: optimiser steps; None: as many as the variant's phases have.
        lam: lambda of ``L = CE + lambda * alignment``.
        latent_steps: K, the budget of the latent block at test, and in training under ``slots="budget"``.
        lr: peak learning rate of AdamW, with warm-up and a cosine to 0.
        warm_up: share of a schedule's steps over which the rate rises.
        weight_decay, beta2, clip: of AdamW (beta1 is 0.9), and the norm that gradients are clipped to.
        batch: packs an optimiser step, over all processes and accumulated micro-batches.
        accumulate: micro-batches that an optimiser step is split into; the result is the same but for rounding.
        pack_items, pack_tokens: at most so many items, and so many columns, in one pack.
        facts: weight of the throw-away head that reads what rendered scenes know about named objects; 0 for other data.
        bf16: run the forward under bfloat16 autocast; weights, losses and the optimiser stay float32.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        lora: rank of a LoRA fine-tuning (needs peft), 0 for a full one.
        seed: of batches, noise, and new weights.
        save_every, log_every: optimiser steps; the first also bounds what a kill can cost.
        protocol: where the published and the corrected procedure differ.
    """

    steps: int | None = None
    lam: float = 0.1
    latent_steps: int = 8
    lr: float = 1e-5
    warm_up: float = 0.03
    weight_decay: float = 0.1
    beta2: float = 0.999
    clip: float = 1.0
    batch: int = 64
    accumulate: int = 1
    pack_items: int = 4
    pack_tokens: int = 16_384
    facts: float = 0.0
    bf16: bool = True
    gradient_checkpointing: bool = False
    lora: int = 0
    seed: int = 42
    save_every: int = 100
    log_every: int = 10
    protocol: Protocol = FAIR

    def __post_init__(self) -> None:
        for name in ("latent_steps", "batch", "accumulate", "pack_items", "pack_tokens", "save_every", "log_every"):
            self._whole(name, 1)
        for name in ("lora", "seed"):
            self._whole(name, 0)
        if self.steps is not None:
            self._whole("steps", 1)
        for name in ("lam", "lr", "weight_decay", "clip", "facts"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{name} = {value!r}", needed="a finite number of at least 0")
        for name in ("warm_up", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name} = {getattr(self, name)!r}", needed="a number from 0 to below 1")
        if self.batch % self.accumulate:
            raise SettingError(
                f"batch = {self.batch} in {self.accumulate} micro-batches",
                needed="micro-batches of equal size",
                fix="choose `accumulate` so that it divides `batch`",
            )

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least:
            raise SettingError(f"{name} = {value!r}", needed=f"a whole number of at least {least}")

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values, the protocol's among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "protocol"}
        return own | {"protocol": {field.name: getattr(self.protocol, field.name) for field in fields(Protocol)}}


PAPER_RUN = TrainSettings(steps=2500)
"""The published run: 2,500 steps of 64 packs at 1e-5; images, weights and hours as the paper states them."""

TINY_RUN = TrainSettings(
    lam=3.0, latent_steps=4, lr=1e-3, warm_up=0.05, weight_decay=0.05, beta2=0.98, batch=24, facts=0.5, seed=0,
    pack_items=8, pack_tokens=1024,
)  # fmt: skip
"""What the shipped models are trained with: 4 layers of width 128 on a processor."""

RUNS: Mapping[str, TrainSettings] = MappingProxyType({"paper": PAPER_RUN, "tiny": TINY_RUN})
