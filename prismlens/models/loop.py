"""The latent loop: prefill, latents, text, one forward at a time; knows nothing of hooks, only of a forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.errors import SettingError
from prismlens.models.config import LVRConfig
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import Prompt
from prismlens.models.visibility import Rule, masks
from prismlens.unrolled import Segment, Unrolled

Forward = Callable[..., StepOutput]
"""`step` of the model, or something that wraps it, called as ``forward(unrolled, n_queries, **inputs)``."""


@dataclass(frozen=True)
class LoopSettings:
    """How a run decodes.

    Args:
        latent_steps: latents in a block (the cap, when the exit rule is ``"end_token"``).
        max_new_tokens: text tokens after the block; latents and forced markers do not count.
        latent_exit: ``"fixed"`` or ``"end_token"``.
        latent_close: ids forced after the last latent.
        eos_ids: ids that end a row.
    """

    latent_steps: int
    max_new_tokens: int
    latent_exit: str
    latent_close: tuple[int, ...]
    eos_ids: tuple[int, ...]

    @classmethod
    def of(
        cls, config: LVRConfig, eos_ids: Sequence[int], *, latent_steps: int | None = None, max_new_tokens: int
    ) -> LoopSettings:
        """The settings of a checkpoint, with an explicit latent budget where one is given."""
        steps = config.latent_steps if latent_steps is None else latent_steps
        if config.latent_entry != "none" and steps < 1:
            raise SettingError(
                f"latent_steps = {steps}",
                needed="at least 1",
                cause="0 latents is another model: the block would be empty",
                fix="to remove latents compare with a model trained without them (tiny/sft)",
            )
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens = {max_new_tokens}", needed="at least 1")
        return cls(steps, max_new_tokens, config.latent_exit, tuple(config.latent_close), tuple(eos_ids))


@dataclass
class _Rows:
    """Where each row of the batch stands between two forwards."""

    latent: Bool[Tensor, " batch"]
    """The next input is a latent."""
    taken: Int[Tensor, " batch"]
    """Latents fed so far, over all blocks."""
    in_block: Int[Tensor, " batch"]
    """Latents fed in the present block."""
    closing: Int[Tensor, " batch"]
    """Index of the next forced id of `latent_close`; at its length when nothing is forced."""
    written: Int[Tensor, " batch"]
    """Text tokens chosen by the model so far."""
    done: Bool[Tensor, " batch"]


@torch.no_grad()
def unroll(
    model: LVRForConditionalGeneration,
    prompt: Prompt,
    settings: LoopSettings,
    *,
    forward: Forward | None = None,
    held: Float[Tensor, "batch step d_model"] | None = None,
    rules: Sequence[Rule] = (),
) -> Unrolled:
    """Decode a batch greedily.

    Args:
        model: the model.
        prompt: left-padded prompts.
        settings: budget, exit rule, forced markers.
        forward: what runs each forward; the model's own `step` by default.
        held: latents to feed instead of the model's own (held mode); the text is decoded all the same.
        rules: visibility rules on top of the model's own.
    """
    forward = forward or plain_forward(model)
    all_rules = (*model.rules, *rules)
    run, out, cache = _prefill(model, prompt, forward, all_rules)
    rows = _first_rows(model, run, settings)
    # Ends: a row's every column is a latent, a forced id (both bounded a block) or a written token (bounded in all).
    while True:
        ids, segment, vectors = _next_inputs(model, run, rows, out, settings, held)
        if bool(rows.done.all()):
            break
        run = _append(run, ids, segment, rows, vectors, settings)
        if bool((rows.done | _is_end(ids, settings) & ~rows.latent).all()):
            break
        out = forward(
            run,
            1,
            input_ids=ids[:, None],
            position_ids=run.position_ids[:, :, -1:],
            attention_mask=masks(run, all_rules, n_layers=model.n_layers, n_queries=1),
            past_key_values=cache,
            latents=vectors[:, None] if bool(rows.latent.any()) else None,
            latent_index=torch.where(rows.latent, 0, -1)[:, None],
        )
        rows.taken, rows.in_block = rows.taken + rows.latent, rows.in_block + rows.latent
    return run


def plain_forward(model: LVRForConditionalGeneration) -> Forward:
    """The model's own `step`, without hooks."""

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        return model.step(**inputs)  # type: ignore[arg-type]

    return forward


def replay_inputs(model: LVRForConditionalGeneration, run: Unrolled, rules: Sequence[Rule] = ()) -> dict[str, object]:
    """Keyword arguments of one `step` over a whole finished sequence (image features apart)."""
    return {
        "input_ids": run.input_ids,
        "position_ids": run.position_ids,
        "attention_mask": masks(run, (*model.rules, *rules), n_layers=model.n_layers, n_queries=run.shape[1]),
        "latents": run.latents if run.latents.shape[1] else None,
        "latent_index": run.steps,
    }


def _prefill(
    model: LVRForConditionalGeneration, prompt: Prompt, forward: Forward, rules: Sequence[Rule]
) -> tuple[Unrolled, StepOutput, DynamicCache]:
    """Run the prompt and return the sequence so far, its last states, and the cache."""
    batch, width = prompt.input_ids.shape
    device = model.device
    ids, segments = prompt.input_ids.to(device), prompt.segments.to(device)
    grid = prompt.image_grid_thw.to(device)
    run = Unrolled(
        items=prompt.items,
        input_ids=ids,
        segments=segments,
        steps=torch.full_like(ids, -1),
        patches=prompt.patches.to(device),
        grids=prompt.grids.to(device),
        position_ids=model.rope_positions(ids, segments != Segment.PAD, grid),
        latents=torch.zeros(batch, 0, model.config.text.hidden_size, dtype=model.dtype, device=device),
        n_latents=torch.zeros(batch, dtype=torch.long, device=device),
        n_prompt=width,
        answer_first=torch.full((batch,), -1, device=device),
    )
    cache = DynamicCache(config=model.config.text)
    out = forward(
        run,
        width,
        input_ids=ids,
        position_ids=run.position_ids,
        attention_mask=masks(run, rules, n_layers=model.n_layers, n_queries=width),
        past_key_values=cache,
        image_features=model.image_features(prompt.pixel_values.to(device), grid),
        keep=slice(width - 1, width),
    )
    return run, out, cache


def _first_rows(model: LVRForConditionalGeneration, run: Unrolled, settings: LoopSettings) -> _Rows:
    """Rows whose prompt ends with the start marker begin with a latent."""
    zero = torch.zeros(run.shape[0], dtype=torch.long, device=run.device)
    start = model.config.lvr_start_id
    entered = run.input_ids[:, -1] == start if start is not None else zero.bool()
    return _Rows(entered.clone(), zero, zero.clone(), zero + len(settings.latent_close), zero.clone(), zero.bool())


def _next_inputs(
    model: LVRForConditionalGeneration,
    run: Unrolled,
    rows: _Rows,
    out: StepOutput,
    settings: LoopSettings,
    held: Tensor | None,
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"], Float[Tensor, "batch d_model"]]:
    """Decide each row's next input: update `rows`, return token ids, segments, and the vectors for latent rows."""
    config = model.config
    choice = out.logits[:, -1].argmax(-1)
    close = torch.tensor(settings.latent_close, dtype=torch.long, device=choice.device)
    was_latent = run.segments[:, -1] == Segment.LATENT
    if config.lvr_start_id is not None and config.latent_entry != "none":
        started = (run.input_ids[:, -1] == config.lvr_start_id) & ~was_latent & ~rows.done
        rows.in_block = torch.where(started, 0, rows.in_block)
        rows.latent = rows.latent | started
    leaving = rows.latent & (rows.in_block >= settings.latent_steps)
    if settings.latent_exit == "end_token":
        ends = [i for i in (config.lvr_latent_end_id, config.lvr_end_id) if i is not None]
        wants = torch.isin(choice, torch.tensor(ends, device=choice.device))
        leaving = leaving | (rows.latent & was_latent & wants)
    rows.latent = rows.latent & ~leaving
    rows.closing = torch.where(leaving, 0, rows.closing)
    forced = ~rows.latent & (rows.closing < len(close)) & ~rows.done
    ids = choice
    if len(close):
        ids = torch.where(forced, close[rows.closing.clamp(max=len(close) - 1)], ids)
    rows.closing = rows.closing + forced
    free = ~rows.latent & ~forced & ~rows.done
    over = free & (rows.written >= settings.max_new_tokens)
    eos = _is_end(run.input_ids[:, -1], settings) & (rows.written > 0)
    rows.done = rows.done | over | (free & eos & ~was_latent)
    rows.written = rows.written + (free & ~rows.done)
    ids = torch.where(rows.latent, config.lvr_id if config.lvr_id is not None else ids, ids)
    segment = torch.where(rows.latent, int(Segment.LATENT), int(Segment.ANSWER))
    segment = torch.where(rows.done, int(Segment.PAD), segment)
    vectors = out.hidden[:, -1]
    if held is not None and bool(rows.latent.any()):
        step = rows.taken.clamp(max=held.shape[1] - 1)
        if bool((rows.latent & (rows.taken > step)).any()):
            raise SettingError(
                f"held latents for {held.shape[1]} steps",
                needed=f"latent {int(rows.taken.max())} too",
                cause="the clean run had a smaller latent budget",
            )
        vectors = held[torch.arange(len(step), device=step.device), step].to(vectors.dtype)
    return ids, segment, vectors


def _is_end(ids: Int[Tensor, " batch"], settings: LoopSettings) -> Bool[Tensor, " batch"]:
    """True where the id ends a row."""
    return torch.isin(ids, torch.tensor(settings.eos_ids, dtype=torch.long, device=ids.device))


def _append(
    run: Unrolled, ids: Tensor, segment: Tensor, rows: _Rows, vectors: Tensor, settings: LoopSettings
) -> Unrolled:
    """The sequence with one more column; text written before a row's first latent becomes part of its lead.

    Under a fixed budget `n_latents` counts the whole block from its first latent on, so that ``latent[-1]`` names the
    last one while the block is still running.
    """
    ahead = settings.latent_steps - rows.in_block if settings.latent_exit == "fixed" else 1
    position = (run.position_ids.amax(0) * run.valid).amax(1) + 1
    first = rows.latent & (rows.taken == 0)
    lead = first[:, None] & (run.segments == Segment.ANSWER)
    latents = run.latents
    if bool(rows.latent.any()):
        widen = int(rows.taken[rows.latent].max()) + 1 - latents.shape[1]
        latents = torch.cat((latents, latents.new_zeros(latents.shape[0], max(widen, 0), latents.shape[2])), 1)
        index = torch.nonzero(rows.latent)[:, 0]
        latents = latents.index_put((index, rows.taken[index]), vectors[index].to(latents.dtype))
    return replace(
        run,
        input_ids=torch.cat((run.input_ids, ids[:, None]), 1),
        segments=torch.cat((torch.where(lead, int(Segment.LEAD), run.segments), segment[:, None]), 1),
        steps=torch.cat((run.steps, torch.where(rows.latent, rows.taken, -1)[:, None]), 1),
        patches=torch.cat((run.patches, run.patches.new_full((len(ids), 1, 2), -1)), 1),
        position_ids=torch.cat((run.position_ids, position.expand(3, -1)[:, :, None]), 2),
        latents=latents,
        n_latents=rows.taken + torch.where(rows.latent, ahead, 0),
    )
