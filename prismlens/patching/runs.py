"""Two aligned sets of runs, and where in each pair the answer is decided; knows no sites and patches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from prismlens.errors import ItemError
from prismlens.models.answers import letter_ids
from prismlens.models.processor import LVRProcessor
from prismlens.trace import Run
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled, take

ANSWER, TEXT = "answer", "text"
"""Where a pair is measured: at the source of the answer, or earlier, where the two texts first differ."""
NO_ANSWER = "no answer"
SAME_ANSWER = "the same answer"
APART = "different sequences before the answer"
NEAR_ZERO = "clean and corrupted too close"
"""Why a pair is left out."""


@dataclass(frozen=True)
class Decision:
    """Where one pair is measured, and between which tokens.

    Args:
        source: the column whose logits decide.
        at: ``"answer"`` or ``"text"``.
        clean: ids that stand for the clean answer; several where it can be spelled in several ways.
        corrupted: ids that stand for the corrupted answer.
    """

    source: int
    at: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PairedRuns:
    """The finished sequences of the pairs that can be measured, equal token by token up to each pair's decision.

    Args:
        clean: the sequences of the clean items.
        corrupted: those of the corrupted items, in the same order.
        decisions: where each pair is measured.
        limit: the last column at which each pair may be patched.
        excluded: reason -> ids of the clean items of pairs left out.
    """

    clean: Unrolled
    corrupted: Unrolled
    decisions: tuple[Decision, ...]
    limit: Int[Tensor, " pair"]
    excluded: Mapping[str, tuple[str, ...]]

    @property
    def source(self) -> Int[Tensor, " pair"]:
        """The column whose logits decide, by pair."""
        return torch.tensor([one.source for one in self.decisions], device=self.clean.device)

    @property
    def width(self) -> int:
        """How many columns there are up to the last that matters in any pair."""
        return int(self.limit.max()) + 1

    def take(self, rows: Sequence[int]) -> PairedRuns:
        """Some of the pairs."""
        return replace(
            self, clean=take(self.clean, rows), corrupted=take(self.corrupted, rows),
            decisions=tuple(self.decisions[row] for row in rows), limit=self.limit[list(rows)],
        )  # fmt: skip


def paired_runs(clean: Run, corrupted: Run, processor: LVRProcessor, mode: str) -> PairedRuns:
    """Align the runs of both sides, and find where each pair is decided.

    Held: at the first token in which the two texts differ, or at the first token of the answer if that comes earlier
    or at the same place. At the answer's first token the tokens compared are the letters of the two items' right
    options (their own tokens where the items have none); at an earlier one they are what the two runs wrote there: a
    text like ``red<answer>B`` is decided at the colour, and its letter only repeats it. A pair may be patched up to the
    column before that token.

    Free: the text is written anew, so there is no such column. The letters are compared wherever the answer then
    starts, and a pair may be patched up to its last latent.

    Raises:
        ItemError: the prompts of a pair differ, an item lacks its letter in free mode, or no pair can be measured.
    """
    _same_prompts(clean.unrolled, corrupted.unrolled)
    decide = {"held": _held, "free": _free}[mode]
    decisions: list[Decision] = []
    kept: list[int] = []
    limits: list[int] = []
    excluded: dict[str, list[str]] = {}
    for row, item in enumerate(clean.items):
        found = decide(clean.unrolled, corrupted.unrolled, row, processor)
        if isinstance(found, str):
            excluded.setdefault(found, []).append(item.id)
            continue
        decisions.append(found[0])
        limits.append(found[1])
        kept.append(row)
    reasons = {reason: tuple(ids) for reason, ids in excluded.items()}
    refuse_none(len(kept), reasons)
    limit = torch.tensor(limits, device=clean.unrolled.device)
    return PairedRuns(take(clean.unrolled, kept), take(corrupted.unrolled, kept), tuple(decisions), limit, reasons)


def refuse_none(kept: int, excluded: Mapping[str, Sequence[str]]) -> None:
    """Raise ItemError where every pair was left out."""
    if not kept:
        raise ItemError(
            "no pair can be measured: " + ", ".join(f"{len(ids)} {why}" for why, ids in excluded.items()),
            needed="pairs that the model answers, differently for the clean and the corrupted image",
            cause="the model cannot do this task, or the change does not matter to the question",
            fix='choose pairs that it answers; for pairs with one answer use metric="logprob" and a smaller min_gap',
        )


def _held(clean: Unrolled, corrupted: Unrolled, row: int, processor: LVRProcessor) -> tuple[Decision, int] | str:
    """The decision of one pair and its limit, or the reason why there is none."""
    apart = _first_difference(clean, corrupted, row)
    starts = [int(run.answer_first[row]) for run in (clean, corrupted) if run.answer_first[row] >= 0]
    candidates: list[int] = [*starts, *([] if apart is None else [apart])]
    if not candidates:
        return NO_ANSWER
    column = min(candidates)
    both = [run.segments[row, column] if column < run.shape[1] else Segment.PAD for run in (clean, corrupted)]
    if column == apart and any(int(segment) != Segment.ANSWER for segment in both):
        return APART
    items = clean.items[row], corrupted.items[row]
    lettered = all(item.answer is not None for item in items)
    if column in starts and lettered:
        decision = Decision(column - 1, ANSWER, *_letters(processor, items))
    else:
        own = [(int(run.input_ids[row, column]),) for run in (clean, corrupted)]
        decision = Decision(column - 1, ANSWER if column in starts else TEXT, *own)
    return decision, column - 1


def _free(clean: Unrolled, corrupted: Unrolled, row: int, processor: LVRProcessor) -> tuple[Decision, int] | str:
    """The letters of one pair and its last latent (or prompt column), or the reason why there is none."""
    items = clean.items[row], corrupted.items[row]
    for item in items:
        if item.answer is None:
            raise ItemError(f"item {item.id!r} has no answer letter", needed='options and an answer for mode="free"')
    if min(int(clean.answer_first[row]), int(corrupted.answer_first[row])) < 0:
        return NO_ANSWER
    latents = [run.n_prompt - 1 for run in (clean, corrupted)]
    latents += [int(c) for run in (clean, corrupted) for c in (run.steps[row] >= 0).nonzero().flatten()]
    apart = _first_difference(clean, corrupted, row)
    if apart is not None and apart <= max(latents):
        return APART
    return Decision(int(clean.answer_first[row]) - 1, ANSWER, *_letters(processor, items)), max(latents)


def _letters(processor: LVRProcessor, items: Sequence[Item]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The one-token spellings of both right letters."""
    clean, corrupted = letter_ids(processor, [str(item.answer) for item in items])
    return clean, corrupted


def _first_difference(clean: Unrolled, corrupted: Unrolled, row: int) -> int | None:
    """The first column in which the two sequences hold different tokens or kinds of input; None if there is none."""
    width = min(clean.shape[1], corrupted.shape[1])
    differs = clean.input_ids[row, :width] != corrupted.input_ids[row, :width]
    differs = differs | (clean.segments[row, :width] != corrupted.segments[row, :width])
    where = differs.nonzero().flatten().tolist()
    if where:
        return where[0]
    longer = max(clean, corrupted, key=lambda run: run.shape[1])
    return width if longer.shape[1] > width and bool(longer.valid[row, width]) else None


def _same_prompts(clean: Unrolled, corrupted: Unrolled) -> None:
    """Raise ItemError unless both prompts of every pair are the same tokens."""
    pairs = zip(clean.items, corrupted.items, _prompts(clean), _prompts(corrupted), strict=True)
    wrong = [f"{a.id!r} and {b.id!r}" for a, b, first, second in pairs if first != second]
    if wrong:
        raise ItemError(
            f"the prompts of {len(wrong)} of {len(clean.items)} pairs differ: {', '.join(wrong[:3])}",
            needed="the same question and options, and images of one size, so that positions line up",
            cause="the lists are not in the same order, or the items are no minimal pairs",
            fix='make them with load_pairs("shapes"), or pair items whose prompts have the same tokens',
        )


def _prompts(run: Unrolled) -> list[list[int]]:
    """The tokens of every row's prompt, and the grid of its image."""
    parts = zip(run.input_ids[:, : run.n_prompt], run.valid[:, : run.n_prompt], run.grids.tolist(), strict=True)
    return [[*ids[valid].tolist(), *grid] for ids, valid, grid in parts]
