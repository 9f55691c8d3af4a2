"""A made-up run of a model, watched by plain PyTorch hooks on its decoder; knows no site names and no nnsight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from prismlens.models.latent import LatentModel, StepOutput
from prismlens.models.loop import Forward, LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.processor import LVRProcessor
from prismlens.models.stages import first_stage
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled, take

STEPS = 3
"""Latents a stage at most: enough to tell a step from the one before and the one after."""
PIXELS = 56


@dataclass(eq=False)
class Watched:
    """What plain hooks saw, one entry a forward.

    Args:
        fed: what entered the first block at the last column, ``[batch, d_model]``.
        made: the state that may be fed back, at the last column: after the final norm, and the LVR head where there is
            one.
    """

    fed: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)


def made_up_items() -> list[Item]:
    """Two items with the same grid of noise and questions of different lengths, so that a batch needs padding."""
    pixels = np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    texts = ("What?", "What is there to see in the picture?")
    return [Item(image, text, ("red", "blue"), id=f"made-up {n}") for n, text in enumerate(texts)]


def watched_run(hf: LatentModel, processor: LVRProcessor, settings: LoopSettings) -> tuple[Unrolled, Watched]:
    """A free run of the made-up items that enters the latent block, where the model has one."""
    stages = tuple(replace(stage, steps=min(stage.steps, STEPS)) for stage in settings.stages)
    short = replace(
        settings,
        latent_steps=sum(stage.steps for stage in stages) or min(settings.latent_steps, STEPS),
        stages=stages, latent_exit="fixed", max_new_tokens=1,
    )  # fmt: skip
    prompt = entering(hf, processor)(made_up_items())
    seen, decoder = Watched(), hf.decoder
    last = hf.lvr_head if hf.has_head else decoder.norm
    with ExitStack() as stack:
        stack.enter_context(entered(decoder.layers[0], lambda value: seen.fed.append(value[:, -1].clone())))
        stack.enter_context(left(last, lambda value: seen.made.append(value[:, -1].clone())))
        run = unroll(hf, prompt, short, forward=_once(hf, short))
    return run, seen


def _once(hf: LatentModel, settings: LoopSettings) -> Forward:
    """The model's own forward, whose logits never open a stage: roles are then in the run what they are after it."""
    plain, starts = plain_forward(hf), [stage.start for stage in settings.stages_of(hf.config)]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        out = plain(unrolled, n_queries, **inputs)
        logits = out.logits.clone()
        logits[..., starts] = float("-inf")
        return replace(out, logits=logits)

    return forward


def entering(hf: LatentModel, processor: LVRProcessor) -> LVRProcessor:
    """The processor, its prompts ending with the token that opens the first stage, where there is one."""
    if hf.config.latent_entry == "none":
        return processor
    token = processor.tokenizer.convert_ids_to_tokens(first_stage(hf.config).start)
    return LVRProcessor(processor.image_processor, processor.tokenizer, start=str(token))


@torch.no_grad()
def whole(hf: LatentModel, processor: LVRProcessor, run: Unrolled) -> dict[str, Any]:
    """Arguments of one `step` over finished sequences."""
    prompt = processor(run.items)
    vision = hf.vision_inputs(prompt.pixel_values.to(hf.device), prompt.image_grid_thw.to(hf.device))
    return replay_inputs(hf, run) | vision


def repeated(hf: LatentModel, inputs: dict[str, Any], run: Unrolled, rows: int) -> dict[str, Any]:
    """Arguments of one `step` over `rows` copies of the first sequence."""
    own = int((run.segments[0] == Segment.IMAGE).sum())
    features = {"image_features": inputs["image_features"][:own].repeat(rows, 1)}
    if "deep_features" in inputs:
        features["deep_features"] = tuple(one[:own].repeat(rows, 1) for one in inputs["deep_features"])
    return replay_inputs(hf, take(run, [0] * rows)) | features


@contextmanager
def entered(module: nn.Module, note: Any) -> Iterator[None]:
    """While open, `note` gets the first argument of every call of the module."""
    handle = module.register_forward_pre_hook(lambda _, args: note(args[0]) and None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def left(module: nn.Module, note: Any) -> Iterator[None]:
    """While open, `note` gets what every call of the module returns."""
    handle = module.register_forward_hook(lambda _, args, output: note(output) and None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eager(hf: LatentModel) -> Iterator[None]:
    """While open, the decoder's attention is the one that returns its weights."""
    parts = [hf.config, hf.config.text]
    before = [part._attn_implementation_internal for part in parts]
    try:
        for part in parts:
            part._attn_implementation_internal = "eager"
        yield
    finally:
        for part, kind in zip(parts, before, strict=True):
            part._attn_implementation_internal = kind
