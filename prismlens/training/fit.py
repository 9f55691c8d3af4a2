"""One training run on scenes: batches, forward (teacher-forced or through the model's own latents), steps of AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
WORDS_LAYER = 3
"""In lessons with `words`, another such head reads the answer's word from every slot after so many layers: the keys and
values of the last layer are made from that state."""

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
    """What one forward over a batch yields: final states, the latents' source states, states after some layers."""

    states: Float[Tensor, "batch pos d_model"]
    sources: Float[Tensor, "batch slot d_model"]
    after: Mapping[int, Float[Tensor, "batch pos d_model"]]


class Heads(nn.Module):
    """The throw-away heads, on the residual stream after `FACTS_LAYER` and `WORDS_LAYER` layers."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.facts = nn.Linear(width, sum(FACTS))
        self.words = nn.Linear(width, vocabulary)


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
            heads = Heads(model.config.text.hidden_size, model.config.text.vocab_size)
            for number, lesson in enumerate(variant.lessons):
                steps = LATENT_STEPS if variant.latents else 0
                log += teach(model, processor, pool, lesson, heads, rng, steps, f"{variant.name} {number + 1}")
    finally:
        model.eval()
    return log


def teach(
    model: LVRForConditionalGeneration,
    processor: LVRProcessor,
    pool: Pool,
    lesson: Lesson,
    heads: Heads,
    rng: np.random.Generator,
    latent_steps: int,
    name: str,
) -> list[dict[str, float]]:
    """One lesson: its own AdamW, and a cosine schedule with warm-up."""
    parameters = [*model.model.language_model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lesson.lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(lesson.steps * WARM_UP), lesson.steps)
    log: list[dict[str, float]] = []
    bar = tqdm(range(lesson.steps), desc=name)
    for step in bar:
        batch = sample_batch(model, processor, pool, lesson, rng, latent_steps)
        parts = losses(model, heads, batch, lesson, rng)
        weights = {"text": 1.0, "facts": FACTS_WEIGHT, "words": 1.0, "align": lesson.lam}
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
    model: LVRForConditionalGeneration, heads: Heads, batch: Batch, lesson: Lesson, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The unweighted terms of the loss: text, facts, and words and alignment where the lesson has them."""
    with torch.autocast("cpu", torch.bfloat16):
        out = FORWARDS[lesson.inputs](model, batch, rng)
    asked = batch.labels != IGNORE
    parts = {"text": text_loss(model.lm_head(out.states[asked].float())[None], batch.labels[asked][None])}
    parts["facts"] = facts_loss(heads.facts(out.after[FACTS_LAYER].float()), batch.facts, FACTS)
    if lesson.words:
        slots = batch.unrolled.steps >= 0
        words = batch.words.repeat(1, batch.steps)
        parts["words"] = text_loss(heads.words(out.after[WORDS_LAYER][slots].float())[None], words.flatten()[None])
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
    with _layer_states(model) as after:
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
    return Pass(out.hidden, out.hidden[rows, batch.sources], {layer: parts[0] for layer, parts in after.items()})


def own_pass(model: LVRForConditionalGeneration, batch: Batch, rng: np.random.Generator) -> Pass:
    """Prompts, then each latent from the state before it, then answers: the gradient runs through the whole loop."""
    cache = DynamicCache(config=model.config.text)
    q = batch.questions
    rows = torch.arange(len(batch.sources))[:, None]
    with _layer_states(model) as after:
        outs = [_advance(model, batch, cache, 0, batch.n_before, None)]
        fed = [outs[0].hidden[rows, batch.sources[:, :q]]]
        for k in range(batch.steps):
            start = batch.n_before + k * q
            outs.append(_advance(model, batch, cache, start, start + q, fed[-1]))
            fed.append(outs[-1].hidden)
        outs.append(_advance(model, batch, cache, batch.n_before + batch.steps * q, batch.unrolled.shape[1], None))
    states = {layer: torch.cat(parts, 1) for layer, parts in after.items()}
    return Pass(torch.cat([o.hidden for o in outs], 1), torch.cat(fed[: batch.steps], 1), states)


def uninformative(batch: Batch, rng: np.random.Generator) -> Float[Tensor, "batch slot d_model"]:
    """Vectors that say nothing about their own question: zeros, noise of random scale, or another scene's targets."""
    shape = batch.targets.shape[:2]
    noise = torch.randn(batch.targets.shape) * torch.rand(*shape, 1) * 2
    other = batch.targets.roll(1 + int(rng.integers(len(batch.targets) - 1)), 0)
    kind = torch.from_numpy(rng.integers(3, size=shape))[..., None]
    return torch.where(kind == 0, torch.zeros(()), torch.where(kind == 1, noise, other))


@torch.no_grad()
def foreign(
    model: LVRForConditionalGeneration, batch: Batch, rng: np.random.Generator
) -> Float[Tensor, "batch slot d_model"]:
    """The latents that the model itself emits on another scene of the batch; one vector in four uninformative."""
    own = own_pass(model, batch, rng).sources.float()
    others = own.roll(1 + int(rng.integers(len(own) - 1)), 0)
    kept = torch.from_numpy(rng.random(own.shape[:2]) < 0.75)[..., None]
    return torch.where(kept, others, uninformative(batch, rng))


FORWARDS: dict[str, Callable[[LVRForConditionalGeneration, Batch, np.random.Generator], Pass]] = {
    "target": lambda model, batch, rng: forced_pass(model, batch, batch.targets),
    "uninformative": lambda model, batch, rng: forced_pass(model, batch, uninformative(batch, rng)),
    "foreign": lambda model, batch, rng: forced_pass(model, batch, foreign(model, batch, rng)),
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


@contextmanager
def _layer_states(model: LVRForConditionalGeneration) -> Iterator[dict[int, list[Tensor]]]:
    """Collects the residual stream after some layers while the context is open, one tensor a forward."""
    kept: dict[int, list[Tensor]] = {FACTS_LAYER: [], WORDS_LAYER: []}
    layers = model.model.language_model.layers
    handles = [
        layers[after - 1].register_forward_hook(lambda module, args, output, to=to: to.append(output))
        for after, to in kept.items()
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
