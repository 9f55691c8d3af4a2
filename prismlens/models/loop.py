"""The latent loop: prefill, latents, text, one forward at a time; knows nothing of hooks, only of a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.models.held import Held
from prismlens.models.latent import LatentModel, StepOutput
from prismlens.models.loop_settings import LoopSettings
from prismlens.models.plan import plan
from prismlens.models.prefix import Prefix
from prismlens.models.processor import Prompt
from prismlens.models.rows import Rows, append, is_end, next_column
from prismlens.models.stages import stage_names
from prismlens.models.visibility import Rule, masks
from prismlens.unrolled import Segment, Unrolled

__all__ = ["Forward", "LoopSettings", "decode", "plain_forward", "prefill", "replay_inputs", "unroll"]

Forward = Callable[..., StepOutput]
"""`step` of the model, or something that wraps it, called as ``forward(unrolled, n_queries, **inputs)``."""


@torch.no_grad()
def unroll(
    model: LatentModel,
    prompt: Prompt,
    settings: LoopSettings,
    *,
    forward: Forward | None = None,
    held: Float[Tensor, "batch step d_model"] | None = None,
    held_blocks: Int[Tensor, "batch block"] | None = None,
    rules: Sequence[Rule] = (),
) -> Unrolled:
    """Decode a batch greedily.

    Args:
        model: the model.
        prompt: left-padded prompts.
        settings: budget, exit rule, forced markers.
        forward: what runs each forward; the model's own `step` by default.
        held: latents to feed instead of the model's own (held mode); the text is decoded all the same.
        held_blocks: how many of them each block of the clean run had (see `held.block_lengths`). With an exit rule
            other than ``"fixed"`` each block then ends where it ended in the clean run, whatever the rule says now.
            Without it every row is taken to have as many latents as `held` is wide.
        rules: visibility rules on top of the model's own.

    Raises:
        SettingError: a row comes to want more held latents than its clean run has.
    """
    forward = forward or plain_forward(model)
    clean = None if held is None else Held(held, held_blocks)
    prefix = prefill(model, prompt, settings, forward=forward, rules=rules)
    return decode(model, prefix, settings, forward=forward, held=clean, rules=rules)


@torch.no_grad()
def decode(
    model: LatentModel,
    prefix: Prefix,
    settings: LoopSettings,
    *,
    forward: Forward | None = None,
    held: Held | None = None,
    rules: Sequence[Rule] = (),
) -> Unrolled:
    """Everything after the prompt, greedily; the prefix's cache grows with it and cannot be used again.

    Args:
        model: the model.
        prefix: what `prefill` or `gather` made.
        settings: budget, exit rule, forced markers.
        forward: what runs each forward; the model's own `step` by default.
        held: latents to feed instead of the model's own, in all rows or some.
        rules: visibility rules on top of the model's own.

    Raises:
        SettingError: a row comes to want more held latents than its clean run has.
    """
    forward = forward or plain_forward(model)
    all_rules = (*model.rules, *rules)
    own, fixed = settings.stages_of(model.config), settings.latent_exit == "fixed"
    names = stage_names(model.config, own)
    planned = plan(names, own, model.config.free_id, fixed=fixed, device=model.device)
    run, out = prefix.run, prefix.out
    rows = Rows.fresh(planned, run.shape[0])
    # Ends: a row's every column is a latent or a forced id (both bounded a stage, and a chain of forced stages has an
    # end), or a written token (bounded in all).
    while True:
        column = next_column(model, run, rows, out, settings, planned, held)
        if bool(rows.done.all()):
            break
        run = append(run, column, rows, planned, fixed=fixed)
        if bool((rows.done | is_end(column.ids, settings) & ~rows.latent).all()):
            break
        out = forward(
            run,
            1,
            input_ids=column.ids[:, None],
            position_ids=run.position_ids[:, :, -1:],
            attention_mask=masks(run, all_rules, n_layers=model.n_layers, n_queries=1),
            past_key_values=prefix.cache,
            latents=column.vectors[:, None] if bool(rows.latent.any()) else None,
            latent_index=torch.where(rows.latent, 0, -1)[:, None],
        )
        rows.fed()
    return replace(run, n_staged=None)


def plain_forward(model: LatentModel) -> Forward:
    """The model's own `step`, without hooks."""

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        return model.step(**inputs)  # type: ignore[arg-type]

    return forward


def replay_inputs(model: LatentModel, run: Unrolled, rules: Sequence[Rule] = ()) -> dict[str, object]:
    """Keyword arguments of one `step` over a whole finished sequence (`vision_inputs` apart)."""
    return {
        "input_ids": run.input_ids,
        "position_ids": run.position_ids,
        "attention_mask": masks(run, (*model.rules, *rules), n_layers=model.n_layers, n_queries=run.shape[1]),
        "latents": run.latents if run.latents.shape[1] else None,
        "latent_index": run.steps,
        "image_mask": run.segments == Segment.IMAGE,
    }


@torch.no_grad()
def prefill(
    model: LatentModel,
    prompt: Prompt,
    settings: LoopSettings,
    *,
    forward: Forward | None = None,
    rules: Sequence[Rule] = (),
    vision: Mapping[str, Any] | None = None,
) -> Prefix:
    """One forward over the prompts.

    Args:
        model: the model.
        prompt: left-padded prompts.
        settings: which stages the block has.
        forward: what runs the forward; the model's own `step` by default.
        rules: visibility rules on top of the model's own.
        vision: what the tower gave for these very images (`vision_inputs`), where an earlier prefill has it.
    """
    forward = forward or plain_forward(model)
    names = stage_names(model.config, settings.stages_of(model.config))
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
        stages=torch.full_like(ids, -1),
        stage_names=names,
        n_staged=torch.zeros(batch, len(names), dtype=torch.long, device=device),
    )
    if vision is None:
        vision = model.vision_inputs(prompt.pixel_values.to(device), grid)
    cache = DynamicCache(config=model.config.text)
    out = forward(
        run,
        width,
        input_ids=ids,
        position_ids=run.position_ids,
        attention_mask=masks(run, (*model.rules, *rules), n_layers=model.n_layers, n_queries=width),
        past_key_values=cache,
        keep=slice(width - 1, width),
        **vision,
    )
    last = StepOutput(out.hidden[:, -1:].clone(), out.logits, out.latent[:, -1:].clone())
    return Prefix(run, last, cache, vision)
