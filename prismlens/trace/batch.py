"""One batch through the model: a free or held run, or a replay; each forward plain, or one nnsight trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from nnsight import NNsight
from torch import Tensor

from prismlens.errors import PrismlensError
from prismlens.models.answers import answer_start, chosen_letter, letter_ids
from prismlens.models.held import block_lengths
from prismlens.models.loop import Forward, LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import LVRProcessor, Prompt
from prismlens.positions import Positions, Role, resolve
from prismlens.sites import site
from prismlens.trace.editing import BatchEdits
from prismlens.trace.forward import Read, traced_step
from prismlens.trace.run import Run
from prismlens.unrolled import Segment, Unrolled

REPLAY_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a replay's states may be from the run's, relative to the largest, before it is an error."""


@dataclass(frozen=True, eq=False)
class Engine:
    """What runs forwards: the model, its nnsight wrapper, and its processor."""

    hf: LVRForConditionalGeneration
    wrapper: NNsight
    processor: LVRProcessor


@torch.no_grad()
def run_batch(engine: Engine, prompt: Prompt, settings: LoopSettings, edits: BatchEdits, held: Unrolled | None) -> Run:
    """Decode one batch under edits; `held` is the clean run of the same items, where its latents are to be fed."""
    letters = max((len(item.letters) for item in prompt.items), default=0)
    spelled = letter_ids(engine.processor, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:letters])
    scores: list[Tensor] = []

    def recording(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        output = inner(unrolled, n_queries, **inputs)
        scores.append(_letter_logprobs(output.logits[:, -1], spelled))
        return output

    inner = _editing_forward(engine, edits)
    latents, blocks = (None, None) if held is None else (held.latents, block_lengths(held))
    run = unroll(engine.hf, prompt, settings, forward=recording, held=latents, held_blocks=blocks, rules=edits.rules())
    finished = _finished(engine.processor, run, torch.stack(scores, 1), settings.latent_steps)
    edits.audit(finished.unrolled, run.n_prompt + len(scores) - 1)
    return finished


@torch.no_grad()
def replay_batch(
    engine: Engine, run: Unrolled, edits: BatchEdits, names: Sequence[str], positions: Role | None
) -> tuple[dict[str, Tensor], Tensor]:
    """One forward over finished sequences; the values of the named sites and the logits at the positions, flat."""
    where = every_position(run) if positions is None else resolve(positions, run)
    mask = torch.zeros_like(run.valid)
    mask[where.rows, where.columns] = True
    prompt = engine.processor(run.items)
    features = engine.hf.image_features(
        prompt.pixel_values.to(engine.hf.device), prompt.image_grid_thw.to(engine.hf.device)
    )
    # Logits only where they are wanted: a real vocabulary at every position would not fit into memory.
    inputs = replay_inputs(engine.hf, run, edits.rules()) | {"image_features": features, "keep": slice(0)}
    reads = [Read(site(name, engine.hf.n_layers), mask) for name in names]
    traced = traced_step(engine.wrapper, inputs, edits.writes(run, run.shape[1]), reads)
    if all(edit.mode == "free" for edit in edits.edits):
        _check_replay(run, traced.output.latent)
    return traced.values, engine.hf.lm_head(traced.output.hidden[mask])


def every_position(run: Unrolled) -> Positions:
    """All positions that are not padding."""
    rows, columns = run.valid.nonzero(as_tuple=True)
    return Positions(rows, columns)


def _editing_forward(engine: Engine, edits: BatchEdits) -> Forward:
    """The plain forward where there is nothing to write, else one trace a forward."""
    plain = plain_forward(engine.hf)

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        writes = edits.writes(unrolled, n_queries)
        if not writes:
            return plain(unrolled, n_queries, **inputs)
        return traced_step(engine.wrapper, inputs, writes, []).output

    return forward


def _letter_logprobs(
    logits: Float[Tensor, "batch vocab"], spelled: list[tuple[int, ...]]
) -> Float[Tensor, "batch option"]:
    """Log-probability of each letter, over all its one-token spellings."""
    logprobs = logits.float().log_softmax(-1)
    columns = [logprobs[:, list(ids)].logsumexp(-1) for ids in spelled]
    return torch.stack(columns, 1) if columns else logprobs[:, :0]


def _finished(
    processor: LVRProcessor, run: Unrolled, scores: Float[Tensor, "batch forward option"], latent_steps: int
) -> Run:
    """Find where each answer starts, read the choices, and keep the options' log-probabilities there."""
    firsts, texts, choices = [], [], []
    options = torch.full((len(run.items), scores.shape[2]), float("nan"), device=scores.device)
    for row, item in enumerate(run.items):
        columns = (run.segments[row] == Segment.ANSWER).nonzero().flatten().tolist()
        ids = run.input_ids[row, columns].tolist()
        start = answer_start(processor, ids)
        firsts.append(-1 if start is None else columns[start])
        # The decoded text without control tokens but with the answer tag, which some tokenizers list as added.
        texts.append(processor.decode(ids, skip_special_tokens=True).strip())
        choices.append(chosen_letter(texts[-1], item.letters))
        if start is not None:
            options[row] = float("-inf")
            options[row, : len(item.letters)] = scores[row, firsts[-1] - run.n_prompt, : len(item.letters)]
    finished = replace(run, answer_first=torch.tensor(firsts, device=run.device))
    return Run(finished, tuple(texts), tuple(choices), options, latent_steps)


def _check_replay(run: Unrolled, latent: Float[Tensor, "batch pos d"]) -> None:
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
