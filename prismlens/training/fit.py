"""One training run on scenes: batches, forward (teacher-forced or through the model's own latents), steps of AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.cache_utils import DynamicCache

from prismlens.data.shapes import Scene
from prismlens.errors import SettingError
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import LVRProcessor
from prismlens.models.visibility import masks
from prismlens.training.objective import alignment_loss, facts_loss, text_loss
from prismlens.training.sequences import FACTS, IGNORE, Batch, collate, make_block, scene_questions
from prismlens.training.variants import LATENT_STEPS, Lesson, Variant

FACTS_LAYER, FACTS_WEIGHT = 2, 0.5
"""A throw-away head reads `FACTS` about each named object after so many layers; without it relations stay at chance."""

WARM_UP = 0.05
"""Share of a lesson's steps over which its learning rate rises."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Scenes with their merger outputs, computed once."""

    scenes: Sequence[Scene]
    features: Sequence[Float[Tensor, "_ d_model"]]
    """One tensor a scene; canvases differ in their number of tokens."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward over a batch yields: final states, the latents' source states, layer states for facts."""

    states: Float[Tensor, "batch pos d_model"]
    sources: Float[Tensor, "batch slot d_model"]
    early: Float[Tensor, "batch pos d_model"]


def train(
    model: LVRForConditionalGeneration, processor: LVRProcessor, pool: Pool, variant: Variant, *, seed: int
) -> list[dict[str, float]]:
    """Teach the language model every lesson of a variant, in place (the tower stays frozen); return the logged losses.

    Raises:
        FloatingPointError: the loss is not finite; the message names the lesson and the step.
        SettingError: the pool has fewer scenes than a batch.
    """
    smallest = max(lesson.scenes for lesson in variant.lessons)
    if len(pool.scenes) < smallest:
        raise SettingError(
            f"a pool of {len(pool.scenes)} scenes", needed=f"at least {smallest}, as many as a batch has"
        )
    rng = np.random.default_rng(seed)
    log: list[dict[str, float]] = []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.train()
            head = nn.Linear(model.config.text.hidden_size, sum(FACTS))
            for number, lesson in enumerate(variant.lessons):
                steps = LATENT_STEPS if variant.latents else 0
                log += teach(model, processor, pool, lesson, head, rng, steps, f"{variant.name} {number + 1}")
    finally:
        model.eval()
    return log


def teach(
    model: LVRForConditionalGeneration,
    processor: LVRProcessor,
    pool: Pool,
    lesson: Lesson,
    head: nn.Linear,
    rng: np.random.Generator,
    latent_steps: int,
    name: str,
) -> list[dict[str, float]]:
    """One lesson: its own AdamW, and a cosine schedule with warm-up."""
    parameters = [*model.model.language_model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lesson.lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(lesson.steps * WARM_UP), lesson.steps)
    log: list[dict[str, float]] = []
    bar = tqdm(range(lesson.steps), desc=name)
    for step in bar:
        batch = sample_batch(model, processor, pool, lesson, rng, latent_steps)
        parts = losses(model, head, batch, lesson, rng)
        weights = {"text": 1.0, "facts": FACTS_WEIGHT, "align": lesson.lam}
        loss = torch.stack([weights[key] * value for key, value in parts.items()]).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == lesson.steps - 1:
            log.append({"step": step, **{key: round(value.item(), 4) for key, value in parts.items()}})
            bar.set_postfix({key: f"{value.item():.3f}" for key, value in parts.items()})
    return log


def losses(
    model: LVRForConditionalGeneration, head: nn.Linear, batch: Batch, lesson: Lesson, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The unweighted terms of the loss: text, facts, and alignment where the lesson has it."""
    with torch.autocast("cpu", torch.bfloat16):
        out = FORWARDS[lesson.inputs](model, batch, rng)
    asked = batch.labels != IGNORE
    parts = {"text": text_loss(model.lm_head(out.states[asked].float())[None], batch.labels[asked][None])}
    parts["facts"] = facts_loss(head(out.early.float()), batch.facts, FACTS)
    if batch.steps and lesson.lam:
        parts["align"] = alignment_loss(out.sources, batch.targets)
    return parts


def sample_batch(
    model: LVRForConditionalGeneration,
    processor: LVRProcessor,
    pool: Pool,
    lesson: Lesson,
    rng: np.random.Generator,
    steps: int,
) -> Batch:
    """Different random scenes of the pool with random questions, each with `steps` latents."""
    close = tuple(model.config.latent_close)
    picked = rng.choice(len(pool.scenes), lesson.scenes, replace=False).tolist()
    scenes = [pool.scenes[i] for i in picked]
    blocks = [
        [
            make_block(processor, scene, question, rng, steps, close)
            for question in scene_questions(scene, rng, dict(lesson.mix))
        ]
        for scene in scenes
    ]
    return collate(model.config, processor, scenes, [pool.features[i] for i in picked], blocks, steps)


def forced_pass(model: LVRForConditionalGeneration, batch: Batch, latents: Tensor) -> Pass:
    """One forward over whole sequences, with the given vectors at the slots."""
    run = batch.unrolled
    with _layer_state(model) as early:
        out = model.step(
            run.input_ids,
            run.position_ids,
            masks(run, model.rules, n_layers=model.n_layers, n_queries=run.shape[1], blocks=batch.blocks),
            image_features=batch.image_features,
            latents=latents if batch.steps else None,
            latent_index=run.steps if batch.steps else None,
            keep=slice(0),
        )
    rows = torch.arange(len(batch.sources))[:, None]
    return Pass(out.hidden, out.hidden[rows, batch.sources], early[0])


def own_pass(model: LVRForConditionalGeneration, batch: Batch, rng: np.random.Generator) -> Pass:
    """Prompts, then each latent from the state before it, then answers: the gradient runs through the whole loop."""
    cache = DynamicCache(config=model.config.text)
    q = batch.questions
    rows = torch.arange(len(batch.sources))[:, None]
    with _layer_state(model) as early:
        outs = [_advance(model, batch, cache, 0, batch.n_before, None)]
        states = outs[0].hidden[rows, batch.sources[:, :q]]
        fed = [states]
        for k in range(batch.steps):
            start = batch.n_before + k * q
            outs.append(_advance(model, batch, cache, start, start + q, fed[-1]))
            fed.append(outs[-1].hidden)
        outs.append(_advance(model, batch, cache, batch.n_before + batch.steps * q, batch.unrolled.shape[1], None))
    return Pass(torch.cat([o.hidden for o in outs], 1), torch.cat(fed[: batch.steps], 1), torch.cat(early, 1))


def uninformative(batch: Batch, rng: np.random.Generator) -> Float[Tensor, "batch slot d_model"]:
    """Vectors that say nothing about their own question: zeros, noise of random scale, or another scene's targets."""
    shape = batch.targets.shape[:2]
    noise = torch.randn(batch.targets.shape) * torch.rand(*shape, 1) * 2
    other = batch.targets.roll(1 + int(rng.integers(len(batch.targets) - 1)), 0)
    kind = torch.from_numpy(rng.integers(3, size=shape))[..., None]
    return torch.where(kind == 0, torch.zeros(()), torch.where(kind == 1, noise, other))


FORWARDS: dict[str, Callable[[LVRForConditionalGeneration, Batch, np.random.Generator], Pass]] = {
    "target": lambda model, batch, rng: forced_pass(model, batch, batch.targets),
    "uninformative": lambda model, batch, rng: forced_pass(model, batch, uninformative(batch, rng)),
    "own": own_pass,
}
"""How the slots are filled, by the name in `Variant.inputs`."""


def _advance(
    model: LVRForConditionalGeneration, batch: Batch, cache: DynamicCache, start: int, stop: int, latents: Tensor | None
) -> StepOutput:
    """One cached forward over columns ``start:stop``."""
    run = batch.unrolled
    so_far = replace(
        run, input_ids=run.input_ids[:, :stop], segments=run.segments[:, :stop], steps=run.steps[:, :stop],
        patches=run.patches[:, :stop], position_ids=run.position_ids[:, :, :stop],
    )  # fmt: skip
    index = torch.arange(stop - start).expand(run.shape[0], -1)
    return model.step(
        run.input_ids[:, start:stop],
        run.position_ids[:, :, start:stop],
        masks(so_far, model.rules, n_layers=model.n_layers, n_queries=stop - start, blocks=batch.blocks[:, :stop]),
        past_key_values=cache,
        image_features=batch.image_features if start == 0 else None,
        latents=latents,
        latent_index=None if latents is None else index,
        keep=slice(0),
    )


class _layer_state:
    """Collects the residual stream after `FACTS_LAYER` layers while the context is open, one tensor a forward."""

    def __init__(self, model: LVRForConditionalGeneration) -> None:
        self.layer = model.model.language_model.layers[FACTS_LAYER - 1]
        self.states: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        self.handle = self.layer.register_forward_hook(self._keep)
        return self.states

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.states.append(output)

    def __exit__(self, *exc: object) -> None:
        self.handle.remove()
