"""Free and held runs of any number of items, batch by batch; knows how batches run, not how a user asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from prismlens.errors import SettingError
from prismlens.models.loop import LoopSettings
from prismlens.positions import Positions
from prismlens.trace.batch import Engine, replay_batch, run_batch
from prismlens.trace.editing import BatchEdits
from prismlens.trace.gradients import Metric
from prismlens.trace.hooks import BatchHooks, HookSet
from prismlens.trace.run import Run, merge_runs
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled, take


def run_in_batches(
    engine: Engine,
    items: Sequence[Item],
    settings: LoopSettings,
    edits: BatchEdits,
    *,
    batch_size: int,
    held: Unrolled | None = None,
    hooks: Sequence[HookSet] = (),
    logits: list[Tensor] | None = None,
    label: str | None = None,
) -> Run:
    """Decode all items.

    Args:
        engine: what runs.
        items: any number.
        settings: of the loop.
        edits: prepared for all of the items.
        batch_size: items a batch.
        held: clean sequences of the items, where their latents are fed.
        hooks: called in every forward.
        logits: is given those that every generated column was chosen from, ``[batch, pos, d_vocab]`` a batch.
        label: of a progress bar; none without one.
    """
    runs: list[Run] = []
    starts = range(0, len(items), batch_size)
    for start in tqdm(starts, desc=label, disable=label is None, unit="batch", leave=False):
        rows = slice(start, start + batch_size)
        last: list[Tensor] = []
        run = run_batch(
            engine,
            engine.processor(items[rows]),
            settings,
            replace(edits, touched={}, hidden={}),
            None if held is None else take(held, rows),
            hooks=BatchHooks(hooks),
            watch=None if logits is None else lambda output, last=last: last.append(output.logits[:, -1]),
        )
        runs.append(run)
        if logits is not None:
            logits.append(_generated(run.unrolled, torch.stack(last, 1)))
    return merge_runs(runs)


def replayed_logits(
    engine: Engine,
    run: Unrolled,
    edits: BatchEdits,
    *,
    batch_size: int,
    hooks: Sequence[HookSet],
    metric: Metric | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of every generated column when finished sequences are replayed once, hooks called."""
    parts = []
    for start in range(0, len(run.items), batch_size):
        part = take(run, slice(start, start + batch_size))
        where = _sources(part)
        _, flat = replay_batch(
            engine, part, replace(edits, touched={}, hidden={}), [], where, hooks=BatchHooks(hooks), metric=metric,
            check=False,
        )  # fmt: skip
        whole = flat.new_full((*part.shape, flat.shape[-1]), float("nan"))
        whole[where.rows, where.columns] = flat
        parts.append(whole[:, part.n_prompt - 1 : -1])
    return joined(parts)


def joined(parts: Sequence[Tensor]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of consecutive batches as one tensor, NaN where a batch has fewer columns."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1]), value=float("nan")) for part in parts])


def refuse_contradictions(run: Run | None, mode: str, return_type: str, backward: bool, metric: Metric | None) -> None:
    """Raise SettingError where the arguments of `run_with_hooks` contradict each other."""
    for wrong, given, needed, cause in (
        (mode not in ("free", "held"), f"mode = {mode!r}", "'free' or 'held'", ""),
        (
            return_type not in ("logits", "run", "both"),
            f"return_type = {return_type!r}",
            "'logits', 'run' or 'both'",
            "",
        ),
        (
            mode == "held" and return_type != "logits",
            f"mode = 'held' with return_type = {return_type!r}",
            "'logits'",
            "a replay decodes nothing, so that there is no new run",
        ),
        (
            mode == "free" and run is not None,
            "mode = 'free' with a finished run",
            "mode = 'held', or no run",
            "in a free run the model unrolls its latents itself",
        ),
        (
            backward != (metric is not None),
            f"{'backward hooks' if backward else 'a metric'} without {'a metric' if backward else 'backward hooks'}",
            "both, or neither",
            "a gradient is that of a number: metric=lambda logits: ..., one number an item",
        ),
        (
            mode == "free" and backward,
            "backward hooks with mode = 'free'",
            "mode = 'held'",
            "a free run chooses tokens, through which no gradient passes",
        ),
    ):
        if wrong:
            raise SettingError(given, needed=needed, cause=cause)


def refuse_mode(mode: str, run: Run | None) -> None:
    """Raise SettingError where a trace's mode is unknown, or goes with no finished run."""
    if mode not in ("free", "held") or (mode == "free" and run is not None):
        raise SettingError(
            f"mode = {mode!r}{'' if run is None else ' with a finished run'}",
            needed="'held', or 'free' without a run",
            cause="in a free trace the model unrolls its latents itself",
        )


def _sources(run: Unrolled) -> Positions:
    """The positions whose logits say what the generated columns are."""
    mask = torch.zeros_like(run.valid)
    mask[:, run.n_prompt - 1 : -1] = run.valid[:, run.n_prompt :]
    rows, columns = mask.nonzero(as_tuple=True)
    return Positions(rows, columns)


def _generated(run: Unrolled, logits: Float[Tensor, "batch forward d_vocab"]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of each forward as those of the generated columns, NaN where a row has ended."""
    written = run.segments[:, run.n_prompt :] != Segment.PAD
    return logits[:, : written.shape[1]].masked_fill(~written[..., None], float("nan"))
