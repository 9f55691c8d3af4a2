"""One batch through the model: a free or held run, or a replay; each forward plain, or one nnsight trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from nnsight import NNsight
from torch import Tensor

from prismlens.errors import PrismlensError
from prismlens.interventions import Structural
from prismlens.models.answers import answer_start, chosen_letter, letter_ids
from prismlens.models.held import block_lengths
from prismlens.models.hooked_attention import attention_hooked
from prismlens.models.latent import LatentModel, StepOutput
from prismlens.models.loop import Forward, LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.processor import LVRProcessor, Prompt
from prismlens.positions import Positions, Role, resolve
from prismlens.sites import Site, expand, site
from prismlens.trace.acts import Act
from prismlens.trace.editing import BatchEdits
from prismlens.trace.forward import Pixels, Read, Traced, traced_step
from prismlens.trace.gradients import Metric, gradients
from prismlens.trace.hooks import BatchHooks
from prismlens.trace.run import Run
from prismlens.trace.turn import turn
from prismlens.unrolled import Segment, Unrolled

REPLAY_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a replay's states may be from the run's, relative to the largest, before it is an error."""


@dataclass(frozen=True, eq=False)
class Engine:
    """What runs forwards: the model, its nnsight wrapper, and its processor."""

    hf: LatentModel
    wrapper: NNsight
    processor: LVRProcessor

    def site(self, name: str) -> Site:
        """The site of that name in this model."""
        return site(name, self.hf.n_layers, n_vision_layers=self.hf.n_vision_layers)

    def entry(self, layer: int) -> Site:
        """What a block reads; after the last one, what the final norm reads."""
        if layer < self.hf.n_layers:
            return self.site(f"blocks.{layer}.hook_resid_pre")
        return Site("ln_final", "model.language_model.norm", "input", (10**6, -1))

    def pixels(self, prompt: Prompt) -> Pixels:
        """The images of a prompt and their grids, on the model's device."""
        return prompt.pixel_values.to(self.hf.device), prompt.image_grid_thw.to(self.hf.device)


@torch.no_grad()
def run_batch(
    engine: Engine,
    prompt: Prompt,
    settings: LoopSettings,
    edits: BatchEdits,
    held: Unrolled | None,
    *,
    hooks: BatchHooks | None = None,
    watch: Callable[[StepOutput], None] | None = None,
) -> Run:
    """Decode one batch under edits.

    Args:
        engine: what runs.
        prompt: of the items.
        settings: of the loop.
        edits: of the batch; at one site they act before hooks.
        held: the clean run of the same items, where its latents are to be fed.
        hooks: functions to call in every forward.
        watch: is shown the output of every forward.
    """
    hooks = hooks or BatchHooks(())
    letters = max((len(item.letters) for item in prompt.items), default=0)
    spelled = letter_ids(engine.processor, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:letters])
    scores: list[Tensor] = []

    def recording(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        output = inner(unrolled, n_queries, **inputs)
        scores.append(letter_logprobs(output.logits[:, -1], spelled))
        if watch is not None:
            watch(output)
        return output

    def planned(unrolled: Unrolled, n_queries: int) -> list[Act]:
        return [*edits.writes(unrolled, n_queries), *hooks.calls(unrolled, n_queries)]

    inner = editing_forward(engine, planned, engine.pixels(prompt))
    latents, blocks = (None, None) if held is None else (held.latents, block_lengths(held))
    eager = any(site.eager for site in (*changed_sites(edits), *hooks.sites()))
    with turn(engine.hf, "a run"), attention_hooked(engine.hf.decoder, eager):
        run = unroll(
            engine.hf, prompt, settings, forward=recording, held=latents, held_blocks=blocks, rules=edits.rules()
        )
    finished = finished_run(engine.processor, run, torch.stack(scores, 1), settings.latent_steps)
    n_run = run.n_prompt + len(scores) - 1
    edits.audit(finished.unrolled, n_run)
    hooks.audit(finished.unrolled, n_run)
    return finished


@torch.no_grad()
def replay_batch(
    engine: Engine,
    run: Unrolled,
    edits: BatchEdits,
    names: Sequence[str],
    positions: Role | Positions | None,
    *,
    hooks: BatchHooks | None = None,
    metric: Metric | None = None,
    stop_at_layer: int | None = None,
    heads: tuple[int, ...] | None = None,
    with_logits: bool = True,
    check: bool = True,
) -> tuple[dict[str, Tensor], Tensor]:
    """One forward over finished sequences; the values of the named sites and the logits at the positions, flat.

    Args:
        engine: what runs.
        run: the sequences.
        edits: as when they were run; at one site they act before hooks.
        names: of sites to keep.
        positions: where, every position by default.
        hooks: functions to call.
        metric: see `Metric`; its gradient at each of the sites is kept as ``name + "_grad"``.
        stop_at_layer: nothing from this block on is computed; there are no logits then.
        heads: of sites with queries and keys, keep these.
        with_logits: otherwise there are none, ``[n, 0]``: at many positions they are larger than what is read.
        check: compare the replay's latents with those of a free run.
    """
    hooks = hooks or BatchHooks(())
    where = selected(positions, run)
    mask = torch.zeros_like(run.valid)
    mask[where.rows, where.columns] = True
    reads = [Read(engine.site(name), mask, metric is not None, heads) for name in names]
    pixels = engine.pixels(engine.processor(run.items))
    inside = any(site.vision for site in (*(read.site for read in reads), *hooks.sites()))
    vision = {"image_features": None} if inside else engine.hf.vision_inputs(*pixels)
    # Logits only where they are wanted: a real vocabulary at every position would not fit into memory.
    inputs = replay_inputs(engine.hf, run, edits.rules()) | vision | {"keep": slice(0)}
    with turn(engine.hf, "a replay"), torch.set_grad_enabled(metric is not None):
        traced = traced_step(
            engine.wrapper,
            inputs,
            [*edits.writes(run, run.shape[1]), *hooks.calls(run, run.shape[1])],
            reads,
            backwards=[] if metric is None else hooks.backwards(run),
            pixels=pixels if inside else None,
            stop_at=None if stop_at_layer is None else engine.entry(stop_at_layer),
        )
        logits = _logits(engine, traced, mask) if with_logits else traced.output.hidden.new_zeros(len(where), 0)
        if metric is not None:
            traced.values.update(gradients(metric, logits, where, traced, reads, inputs["latent_index"]))
    if stop_at_layer is None:
        hooks.audit(run, run.shape[1], replayed=True)
        if check and all(edit.mode == "free" for edit in edits.edits):
            check_replay(run, traced.output.latent)
    return traced.values, logits.detach()


def selected(positions: Role | Positions | None, run: Unrolled) -> Positions:
    """The positions that a role names, or every one that is not padding."""
    if isinstance(positions, Positions):
        return positions
    return every_position(run) if positions is None else resolve(positions, run)


def _logits(engine: Engine, traced: Traced, mask: Tensor) -> Float[Tensor, "n d_vocab"]:
    """Logits at the selected positions; without a column where the forward was stopped."""
    if traced.output.logits.shape[1]:
        return traced.output.logits[mask]
    if not traced.output.hidden.shape[1]:
        return traced.output.logits.new_zeros(int(mask.sum()), 0)
    return engine.hf.lm_head(traced.output.hidden[mask])


def every_position(run: Unrolled) -> Positions:
    """All positions that are not padding."""
    rows, columns = run.valid.nonzero(as_tuple=True)
    return Positions(rows, columns)


def editing_forward(
    engine: Engine, planned: Callable[[Unrolled, int], Sequence[Act]], pixels: Pixels | None = None
) -> Forward:
    """The plain forward where there is nothing to do, else one trace a forward.

    Args:
        engine: what runs.
        planned: what to do in a forward over the last columns of a sequence.
        pixels: of the prompts, where something may be done in the vision tower.
    """
    plain = plain_forward(engine.hf)

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        acts = planned(unrolled, n_queries)
        if not acts:
            return plain(unrolled, n_queries, **inputs)
        inside = any(act.site.vision for act in acts)
        return traced_step(engine.wrapper, inputs, acts, [], pixels=pixels if inside else None).output

    return forward


def changed_sites(edits: BatchEdits) -> list[Site]:
    """The sites that edits change."""
    changing = [edit for edit in edits.edits if not isinstance(edit.op, Structural)]
    return [site for edit in changing for site in expand(edit.site, edits.n_layers)]


def letter_logprobs(
    logits: Float[Tensor, "batch vocab"], spelled: list[tuple[int, ...]]
) -> Float[Tensor, "batch option"]:
    """Log-probability of each letter, over all its one-token spellings."""
    logprobs = logits.float().log_softmax(-1)
    columns = [logprobs[:, list(ids)].logsumexp(-1) for ids in spelled]
    return torch.stack(columns, 1) if columns else logprobs[:, :0]


def finished_run(
    processor: LVRProcessor, run: Unrolled, scores: Float[Tensor, "batch forward option"], latent_steps: int
) -> Run:
    """Find where each answer starts, read the choices, and keep the options' log-probabilities there."""
    firsts, texts, choices = [], [], []
    read: dict[tuple[int, ...], tuple[int | None, str]] = {}  # most rows of a sweep write what others wrote
    rows = zip(run.items, run.input_ids.tolist(), run.segments.tolist(), strict=True)
    for item, ids_of_row, segments in rows:
        columns = [column for column, segment in enumerate(segments) if segment == Segment.ANSWER]
        ids = tuple(ids_of_row[column] for column in columns)
        if ids not in read:
            # The decoded text without control tokens but with the answer tag, which some tokenizers list as added.
            read[ids] = answer_start(processor, ids), processor.decode(ids, skip_special_tokens=True).strip()
        start, text = read[ids]
        firsts.append(-1 if start is None else columns[start])
        texts.append(text)
        choices.append(chosen_letter(text, item.letters))
    options = _options_at(run, scores, firsts)
    finished = replace(run, answer_first=torch.tensor(firsts, device=run.device))
    return Run(finished, tuple(texts), tuple(choices), options, latent_steps)


def _options_at(
    run: Unrolled, scores: Float[Tensor, "batch forward option"], firsts: Sequence[int]
) -> Float[Tensor, "batch option"]:
    """The options' scores where each answer begins; -inf beyond an item's own options, NaN without an answer."""
    first = torch.tensor(firsts, device=scores.device)
    own = scores[torch.arange(len(firsts), device=scores.device), (first - run.n_prompt).clamp(min=0)]
    letters = torch.tensor([len(item.letters) for item in run.items], device=scores.device)
    beyond = torch.arange(scores.shape[2], device=scores.device) >= letters[:, None]
    return own.masked_fill(beyond, float("-inf")).masked_fill((first < 0)[:, None], float("nan"))


def check_replay(run: Unrolled, latent: Float[Tensor, "batch pos d"]) -> None:
    """What the positions before the latents give back must be the latents that the free run recorded, under edits too.

    Held runs record the clean run's latents and are not compared.
    """
    rows, columns = (run.steps >= 0).nonzero(as_tuple=True)
    if not len(rows):
        return
    own, again = run.latents[rows, run.steps[rows, columns]].float(), latent[rows, columns - 1].float()
    error = float((own - again).abs().max() / own.abs().max().clamp(min=1e-9))
    limit = REPLAY_TOLERANCE.get(latent.dtype, 1e-4)
    if not error <= limit:
        raise PrismlensError(
            f"the replay's states differ from the run's by {error:.2g} (relative)",
            needed=f"at most {limit:g}",
            cause="the replay ran under other edits than the run, or the model is not deterministic",
            fix="replay with the same edits; call model.eval()",
        )
