"""Several conditions in one batch: each one's edits act on its own rows; knows no experiment and writes no records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from prismlens.models.answers import letter_ids
from prismlens.models.held import Held, block_lengths
from prismlens.models.hooked_attention import attention_hooked
from prismlens.models.latent import StepOutput
from prismlens.models.loop import LoopSettings, decode, prefill
from prismlens.models.prefix import Prefix, gather
from prismlens.models.processor import Prompt
from prismlens.models.visibility import Rule, masks
from prismlens.positions import Role
from prismlens.trace.batch import Engine, changed_sites, editing_forward, finished_run, letter_logprobs
from prismlens.trace.editing import BatchEdits
from prismlens.trace.forward import Write
from prismlens.trace.run import Run
from prismlens.types import LETTERS
from prismlens.unrolled import Unrolled, take


@dataclass(frozen=True, repr=False)
class OnRows(Role):
    """A role in some rows of a batch, and nothing in the others."""

    role: Role
    rows: tuple[int, ...]

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """The role's mask, False outside the rows."""
        own = torch.zeros(unrolled.shape[0], dtype=torch.bool, device=unrolled.device)
        own[list(self.rows)] = True
        return self.role.mask(unrolled) & own[:, None]

    def __str__(self) -> str:
        return f"{self.role} in {len(self.rows)} rows"


@dataclass(frozen=True, eq=False)
class Part:
    """One condition's rows of a batch, ascending, and its edits of them.

    Args:
        rows: the rows.
        edits: made for these rows alone: it keeps account of what it changed.
    """

    rows: tuple[int, ...]
    edits: BatchEdits

    def of(self, unrolled: Unrolled) -> Unrolled:
        """The part's rows; the batch itself where it has them all."""
        return unrolled if self.rows == tuple(range(unrolled.shape[0])) else take(unrolled, self.rows)


@dataclass(frozen=True, eq=False)
class JointEdits:
    """The edits of all parts of a batch; a row that is in no part runs without any."""

    parts: Sequence[Part] = ()

    @property
    def eager(self) -> bool:
        """Whether an edit acts where only attention that spells out its arithmetic has something."""
        return any(site.eager for part in self.parts for site in changed_sites(part.edits))

    def rules(self) -> tuple[Rule, ...]:
        """Every part's visibility rules, each for its own rows."""
        return tuple(
            replace(rule, query=OnRows(rule.query, part.rows)) for part in self.parts for rule in part.edits.rules()
        )

    def writes(self, run: Unrolled, n_queries: int) -> list[Write]:
        """What to change in a forward over the last `n_queries` columns of the whole batch."""
        out = []
        for part in self.parts:
            index = torch.tensor(part.rows, dtype=torch.long, device=run.device)
            for write in part.edits.writes(part.of(run), n_queries):
                wide = write.mask.new_zeros((run.shape[0], *write.mask.shape[1:]))
                wide[index] = write.mask
                out.append(replace(write, mask=wide, change=_for_part(write)))
        return out

    def audit(self, run: Unrolled, n_run: int) -> None:
        """Every part's own audit, of its own rows; see `BatchEdits.audit`."""
        for part in self.parts:
            part.edits.audit(part.of(run), n_run)


def _for_part(write: Write):
    """The write's change, given the mask that it was made for and not that of the whole batch."""
    return lambda values, _: write.change(values, write.mask)


@torch.no_grad()
def prefill_batch(
    engine: Engine, prompt: Prompt, settings: LoopSettings, edits: JointEdits, like: Prefix | None = None
) -> Prefix:
    """The prompts' forward under edits; `like` is another prefix of the same prompts, whose vision inputs serve."""
    vision = None if like is None else like.vision
    forward = editing_forward(engine, edits.writes)
    with attention_hooked(engine.hf.decoder, edits.eager):
        return prefill(engine.hf, prompt, settings, forward=forward, rules=edits.rules(), vision=vision)


@torch.no_grad()
def decode_batch(
    engine: Engine, prefix: Prefix, settings: LoopSettings, edits: JointEdits, held: Held | None = None
) -> Run:
    """Decode every row of a prefix (its cache is used up), check that all edits took effect, and read the answers."""
    letters = max((len(item.letters) for item in prefix.run.items), default=0)
    spelled = letter_ids(engine.processor, LETTERS[:letters])
    scores = [letter_logprobs(prefix.out.logits[:, -1], spelled)]
    inner = editing_forward(engine, edits.writes)

    def recording(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        output = inner(unrolled, n_queries, **inputs)
        scores.append(letter_logprobs(output.logits[:, -1], spelled))
        return output

    with attention_hooked(engine.hf.decoder, edits.eager):
        run = decode(engine.hf, prefix, settings, forward=recording, held=held, rules=edits.rules())
    out = finished_run(engine.processor, run, torch.stack(scores, 1), settings.latent_steps)
    edits.audit(out.unrolled, run.n_prompt + len(scores) - 1)
    return out


def held_rows(clean: Unrolled, slots: int, rows: Sequence[int]) -> Held | None:
    """The latents of a clean run, for some rows of a batch that holds its items `slots` times in a row."""
    if not rows:
        return None
    copies = take(clean, [*range(len(clean.items))] * slots)
    own = torch.zeros(copies.shape[0], dtype=torch.bool, device=copies.device)
    own[list(rows)] = True
    return Held(copies.latents, block_lengths(copies), own)


def prompt_is_shared(part: Part, run: Unrolled) -> bool:
    """Whether a part leaves the prompts' forward as it is; its edits note that they were asked.

    Args:
        part: rows of the prompts, and edits that have seen no forward yet.
        run: the prompts.
    """
    writes = part.edits.writes(part.of(run), run.n_prompt)
    hides = any(bool(seen.pairs().any()) for forwards in part.edits.hidden.values() for seen in forwards)
    return not writes and not hides


@torch.no_grad()
def rows_are_alike(engine: Engine, prefix: Prefix, slots: int) -> bool:
    """Whether a row's numbers do not depend on its place: one forward over `slots` copies of a prefix, compared.

    Matrix products may use other kernels at the edge of a batch, and then add in another order.
    """
    batch = len(prefix.run.items)
    copies = gather(engine.hf, [(prefix, range(batch))] * slots)
    run = copies.run
    ids = copies.out.logits[:, -1].argmax(-1)[:, None]
    after = replace(
        run,
        input_ids=torch.cat((run.input_ids, ids), 1),
        segments=torch.cat((run.segments, run.segments[:, -1:]), 1),
        steps=torch.cat((run.steps, run.steps[:, -1:]), 1),
        patches=torch.cat((run.patches, run.patches[:, -1:]), 1),
        stages=torch.cat((run.stages, run.stages[:, -1:]), 1),
        position_ids=torch.cat((run.position_ids, run.position_ids[:, :, -1:] + 1), 2),
    )
    out = engine.hf.step(
        input_ids=ids,
        position_ids=after.position_ids[:, :, -1:],
        attention_mask=masks(after, engine.hf.rules, n_layers=engine.hf.n_layers, n_queries=1),
        past_key_values=copies.cache,
    )
    numbers = torch.cat((out.hidden, out.logits), -1)
    return all(torch.equal(numbers[:batch], part) for part in numbers.split(batch))
