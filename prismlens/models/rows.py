"""What each row of a batch is fed next, and the sequence with it; knows no attention and no cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prismlens.models.exits import EXITS, Moment
from prismlens.models.held import Held
from prismlens.models.latent import LatentModel, StepOutput
from prismlens.models.loop_settings import LoopSettings
from prismlens.models.plan import NEVER, Plan
from prismlens.unrolled import Segment, Unrolled


@dataclass
class Rows:
    """Where each row of the batch stands between two forwards."""

    latent: Bool[Tensor, " batch"]
    """The next input is a latent."""
    stage: Int[Tensor, " batch"]
    """The stage that the row is in, or was in last; 0 before the first."""
    block: Int[Tensor, " batch"]
    """How many stages the row has opened."""
    taken: Int[Tensor, " batch"]
    """Latents fed so far, over all blocks."""
    in_block: Int[Tensor, " batch"]
    """Latents fed in the present block."""
    closing: Int[Tensor, " batch"]
    """Number of the next forced id after the stage, at least as many as there are when nothing is forced; read between
    stages only."""
    written: Int[Tensor, " batch"]
    """Text tokens chosen by the model so far."""
    done: Bool[Tensor, " batch"]
    gap: Int[Tensor, " batch"]
    """Positions to leave free before the next input."""

    @classmethod
    def fresh(cls, plan: Plan, batch: int) -> Rows:
        """Rows at the end of their prompts."""
        zero = torch.zeros(batch, dtype=torch.long, device=plan.starts.device)
        return cls(
            latent=zero.bool(), stage=zero, block=zero, taken=zero, in_block=zero, closing=plan.n_close[zero],
            written=zero, done=zero.bool(), gap=zero,
        )  # fmt: skip

    def fed(self) -> None:
        """Note that the latents of this forward were fed."""
        self.taken, self.in_block = self.taken + self.latent, self.in_block + self.latent


@dataclass(frozen=True, eq=False)
class Column:
    """The next input of every row.

    Args:
        ids: token ids; the slot's at latents.
        segments: `Segment` values.
        vectors: what is fed where the input is a latent.
    """

    ids: Int[Tensor, " batch"]
    segments: Int[Tensor, " batch"]
    vectors: Float[Tensor, "batch d_model"]


def next_column(
    model: LatentModel,
    run: Unrolled,
    rows: Rows,
    out: StepOutput,
    settings: LoopSettings,
    plan: Plan,
    held: Held | None,
) -> Column:
    """Decide each row's next input; `rows` is brought up to date."""
    choice, slot = out.logits[:, -1].argmax(-1), model.config.lvr_id
    was_latent = run.segments[:, -1] == Segment.LATENT
    _open(run, rows, plan, was_latent)
    leaving = rows.latent & (rows.in_block >= plan.steps[rows.stage])
    leaving = leaving | (rows.latent & was_latent & _wants_out(model, run, rows, choice, settings, held))
    rows.latent = rows.latent & ~leaving
    rows.gap = torch.where(leaving, plan.gaps[rows.stage], 0)
    rows.closing = torch.where(leaving, 0, rows.closing)
    forced = ~rows.latent & (rows.closing < plan.n_close[rows.stage]) & ~rows.done
    ids = torch.where(forced, plan.forced(rows.stage, rows.closing), choice)
    rows.closing = rows.closing + forced
    free = ~rows.latent & ~forced & ~rows.done
    over = free & (rows.written >= settings.max_new_tokens)
    eos = is_end(run.input_ids[:, -1], settings) & (rows.written > 0)
    rows.done = rows.done | over | (free & eos & ~was_latent)
    rows.written = rows.written + (free & ~rows.done)
    ids = torch.where(rows.latent, ids if slot is None else slot, ids)
    segments = torch.where(forced & plan.leads[rows.stage], int(Segment.BETWEEN), int(Segment.ANSWER))
    segments = torch.where(rows.latent, int(Segment.LATENT), segments)
    segments = torch.where(rows.done, int(Segment.PAD), segments)
    vectors = out.latent[:, -1]
    if held is not None and bool(rows.latent.any()):
        fed = rows.latent if held.rows is None else rows.latent & held.rows
        clean = held.feed(run.items, fed, rows.taken, rows.block - 1, rows.in_block).to(vectors.dtype)
        vectors = torch.where(fed[:, None], clean, vectors)
    return Column(ids, segments, vectors)


def append(run: Unrolled, column: Column, rows: Rows, plan: Plan, *, fixed: bool) -> Unrolled:
    """The sequence with one more column.

    When a stage opens, the text that the row has written by itself becomes part of its lead before the first stage, and
    of what lies between before a later one. `n_latents` counts what is sure to come, so that ``latent[-1]`` names the
    last latent of all while the block is still running.
    """
    position = (run.position_ids.amax(0) * run.valid).amax(1) + 1 + rows.gap
    opens = rows.latent & (rows.in_block == 0)
    text = run.segments == Segment.ANSWER
    segments = torch.where((opens & (rows.taken == 0))[:, None] & text, int(Segment.LEAD), run.segments)
    segments = torch.where((opens & (rows.taken > 0))[:, None] & text, int(Segment.BETWEEN), segments)
    as_written = run.as_written
    if as_written is not None or not torch.equal(segments, run.segments):
        as_written = torch.cat((run.segments if as_written is None else as_written, column.segments[:, None]), 1)
    segments = torch.cat((segments, column.segments[:, None]), 1)
    input_ids = torch.cat((run.input_ids, column.ids[:, None]), 1)
    stage = torch.where(rows.latent, rows.stage, -1)
    stages = torch.cat((run.stages, stage[:, None]), 1)
    if plan.free_id != NEVER:
        is_free = (segments == Segment.BETWEEN) & (input_ids == plan.free_id)
        stages = torch.where(is_free, plan.n_stages, stages)
    n_staged = _seen(stages, plan) + _to_come(rows, plan, fixed=fixed)
    return replace(
        run,
        input_ids=input_ids,
        segments=segments,
        steps=torch.cat((run.steps, torch.where(rows.latent, rows.taken, -1)[:, None]), 1),
        patches=torch.cat((run.patches, run.patches.new_full((len(stage), 1, 2), -1)), 1),
        position_ids=torch.cat((run.position_ids, position.expand(3, -1)[:, :, None]), 2),
        latents=_with_vectors(run.latents, column.vectors, rows),
        n_latents=n_staged[:, : plan.n_stages].sum(1),
        stages=stages,
        n_staged=n_staged,
        as_written=as_written,
    )


def is_end(ids: Int[Tensor, " batch"], settings: LoopSettings) -> Bool[Tensor, " batch"]:
    """True where the id ends a row."""
    return torch.isin(ids, torch.tensor(settings.eos_ids, dtype=torch.long, device=ids.device))


def _open(run: Unrolled, rows: Rows, plan: Plan, was_latent: Bool[Tensor, " batch"]) -> None:
    """Rows whose last token opens a stage are now in it."""
    opens, stage = plan.opened_by(run.input_ids[:, -1])
    started = opens & ~was_latent & ~rows.done
    rows.stage = torch.where(started, stage, rows.stage)
    rows.block = rows.block + started
    rows.in_block = torch.where(started, 0, rows.in_block)
    rows.latent = rows.latent | started


def _wants_out(
    model: LatentModel,
    run: Unrolled,
    rows: Rows,
    choice: Int[Tensor, " batch"],
    settings: LoopSettings,
    held: Held | None,
) -> Bool[Tensor, " batch"]:
    """Rows whose stage ends before its budget is spent, if they are in one.

    Under held latents a stage ends where it ended in the clean run: how long it is belongs to what is held.
    """
    spent = None if held is None or settings.latent_exit == "fixed" else held.spent(rows.block - 1, rows.in_block)
    if spent is not None and (held is None or held.rows is None):
        return spent
    config, last = model.config, (rows.taken - 1).clamp(min=0)
    everyone = torch.arange(len(last), device=last.device)
    fed = torch.cat((run.latents, run.latents.new_zeros(len(last), 1, run.latents.shape[2])), 1)[everyone, last]
    vector, distance = model.lvr_latent_end_emb, config.latent_end_distance
    moment = Moment(choice, fed, config.end_ids, vector, distance, config.latent_end_threshold)
    own = EXITS[settings.latent_exit](moment)
    return own if spent is None or held is None or held.rows is None else torch.where(held.rows, spent, own)


def _seen(stages: Int[Tensor, "batch pos"], plan: Plan) -> Int[Tensor, "batch stage"]:
    """How many positions of each stage there are."""
    names = torch.arange(len(plan.names), device=stages.device)
    return (stages[..., None] == names).sum(1)


def _to_come(rows: Rows, plan: Plan, *, fixed: bool) -> Int[Tensor, "batch stage"]:
    """How many positions of each stage are sure to follow the present column."""
    names = torch.arange(len(plan.names), device=rows.stage.device)
    later, leads = plan.later[rows.stage], plan.leads[rows.stage] & ~rows.done & (rows.block > 0)
    later = torch.where((rows.latent | leads)[:, None], later, 0)
    placed = torch.where(rows.latent | ~leads, 0, plan.placed[rows.stage, rows.closing])
    later = later - placed[:, None] * (names == plan.n_stages)
    rest = torch.where(rows.latent & fixed, plan.steps[rows.stage] - rows.in_block - 1, 0)
    return later + rest[:, None] * (names == rows.stage[:, None])


def _with_vectors(
    latents: Float[Tensor, "batch step d_model"], vectors: Float[Tensor, "batch d_model"], rows: Rows
) -> Float[Tensor, "batch step_or_more d_model"]:
    """The latents with those of the present column."""
    if not bool(rows.latent.any()):
        return latents
    widen = int(rows.taken[rows.latent].max()) + 1 - latents.shape[1]
    latents = torch.cat((latents, latents.new_zeros(latents.shape[0], max(widen, 0), latents.shape[2])), 1)
    index = torch.nonzero(rows.latent)[:, 0]
    return latents.index_put((index, rows.taken[index]), vectors[index].to(latents.dtype))
