"""Skipped latents: the loop's settings with a shorter block, and whether every row had one; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from prismlens.errors import EditError
from prismlens.interventions import Edit, Skip
from prismlens.models.config import LatentConfig
from prismlens.models.loop_settings import LoopSettings
from prismlens.models.stages import Stage
from prismlens.unrolled import Unrolled


def skipped(edits: Sequence[Edit]) -> int:
    """How many latents the edits skip in all."""
    return sum(edit.op.n for edit in edits if isinstance(edit.op, Skip))


def _refuse_both(edits: Sequence[Edit]) -> None:
    kept = {edit.op.keep_positions for edit in edits if isinstance(edit.op, Skip)}
    if len(kept) > 1:
        raise EditError(
            "skips that keep positions and skips that do not together",
            needed="one kind",
            fix="give both the same keep_positions",
        )


def shortened(settings: LoopSettings, config: LatentConfig, edits: Sequence[Edit]) -> LoopSettings:
    """The settings under the edits' skips; `latent_steps` keeps the number that the run was asked for.

    Raises:
        EditError: the block is shorter than what is to be skipped, the model ends its blocks by itself, or some skips
            keep positions and others do not.
    """
    n = skipped(edits)
    if not n:
        return settings
    _refuse_both(edits)
    stages = settings.stages_of(config)
    total = sum(stage.steps for stage in stages)
    if n > total:
        raise EditError(
            f"{n} latents are to be skipped of {total}",
            needed=f"at most {total}, the latents of a block",
            cause="the model has no latents" if not total else "several skips add up, or the budget is smaller",
        )
    if settings.latent_exit != "fixed":
        raise EditError(
            f"{n} latents are to be skipped on a model with the exit rule {settings.latent_exit!r}",
            needed='the exit rule "fixed"',
            cause="how many latents come last is not known while the model itself decides when to end",
            fix="run with fewer latents: generate(items, latent_steps=...)",
        )
    keep = all(edit.op.keep_positions for edit in edits if isinstance(edit.op, Skip))
    left: list[Stage] = []
    for stage in reversed(stages):
        taken = min(n, stage.steps)
        left.append(replace(stage, steps=stage.steps - taken, gap=taken if keep else 0))
        n -= taken
    return replace(settings, stages=tuple(reversed(left)))


def refuse_unopened(edits: Sequence[Edit], opens: Sequence[int], run: Unrolled) -> None:
    """Raise EditError where an item never opened a block: nothing was skipped there."""
    starts = torch.tensor(list(opens), dtype=torch.long, device=run.device)
    never = ~(torch.isin(run.input_ids, starts) & run.valid).any(1)
    ids = [run.items[row].id for row in never.nonzero().flatten().tolist()]
    if ids and skipped(edits):
        raise EditError(
            f"latents were to be skipped in {len(ids)} items that never enter latent mode: {', '.join(ids[:5])}",
            needed="items for which the model opens a latent block",
            cause="the model enters by itself, and did not",
            fix="leave these items out (run.without_latents lists them)",
        )
