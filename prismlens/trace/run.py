"""What a run gives back: texts, choices, latents, sequences, and the probabilities of the options; frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from prismlens.errors import ItemError
from prismlens.markup import block, table, title
from prismlens.showing import show
from prismlens.types import Item
from prismlens.unrolled import Unrolled, concatenate, take

SHOWN = 10
"""Items that a notebook shows of a run."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run of some items, in their order.

    Args:
        unrolled: the whole sequences.
        text: what each item's model wrote after the latents, control tokens left out.
        choice: the letter chosen, None where the text chooses none.
        option_logprobs: log-probability of each option's letter where the answer starts, ``[batch, option]``; -inf
            beyond the item's own options, NaN where the model wrote no answer.
        latent_steps: the budget of a block over all its stages, as the run was asked for it.
        donors: item id -> donor id, for each edit that swaps, in the order of the edits.
        reference: the clean run that the edits took donors, means and spreads from, where they needed one.
    """

    unrolled: Unrolled
    text: tuple[str, ...]
    choice: tuple[str | None, ...]
    option_logprobs: Float[Tensor, "batch option"]
    latent_steps: int
    donors: tuple[dict[str, str], ...] = ()
    reference: Run | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The items, in the order of the rows."""
        return self.unrolled.items

    @property
    def latents(self) -> Float[Tensor, "batch step d_model"]:
        """The model's own latents before any edit, zero-padded over steps (see `steps_taken`)."""
        return self.unrolled.latents

    @property
    def steps_taken(self) -> Int[Tensor, " batch"]:
        """How many latents each item's model emitted; 0 where it never entered latent mode."""
        return self.unrolled.n_latents

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Whether the choice is the item's answer; None where the answer is not known."""
        pairs = zip(self.choice, self.items, strict=True)
        return tuple(None if item.answer is None else choice == item.answer for choice, item in pairs)

    @property
    def without_latents(self) -> tuple[str, ...]:
        """Ids of the items whose model never entered latent mode."""
        return tuple(item.id for item, n in zip(self.items, self.steps_taken.tolist(), strict=True) if n == 0)

    def _repr_html_(self) -> str:
        """How many answers are right, and the first items with what the model wrote, for a notebook."""
        known = [value for value in self.correct if value is not None]
        note = f"{sum(known)} of {len(known)} right" if known else "no item has a known answer"
        columns = ("item", "question", "answer", "chosen", "latents", "text")
        lines = [
            (item.id, item.question, item.answer or "", choice or "none", int(steps), text)
            for item, choice, steps, text in zip(self.items, self.choice, self.steps_taken, self.text, strict=True)
        ]
        return block(title(f"run of {len(self.items)} items", note), table(columns, lines, shown=SHOWN))

    def _repr_text_(self) -> str:
        """The same for a terminal."""
        known = [value for value in self.correct if value is not None]
        rows = zip(self.items, self.choice, self.steps_taken.tolist(), self.text, strict=True)
        lines = [
            f"{item.id}: chose {choice or 'none'}, answer {item.answer or 'not known'}, {steps} latents, {text!r}"
            for item, choice, steps, text in list(rows)[:SHOWN]
        ]
        rest = len(self.items) - len(lines)
        more = [f"and {rest} more"] if rest else []
        return "\n".join([f"run of {len(self.items)} items, {sum(known)} of {len(known)} right", *lines, *more])

    def show(self) -> None:
        """What was answered, item by item: a table in a notebook, text elsewhere."""
        show(self)

    def rows_of(self, items: Sequence[Item]) -> list[int]:
        """The row of each item, by id.

        Raises:
            ItemError: the run lacks some of the items.
        """
        rows = {item.id: row for row, item in enumerate(self.items)}
        lacking = [item.id for item in items if item.id not in rows]
        if lacking:
            raise ItemError(
                f"the run lacks {len(lacking)} of {len(items)} items: {', '.join(map(repr, lacking[:5]))}",
                needed="a run that holds every item",
                cause="it was made from other items, or ids were changed",
            )
        return [rows[item.id] for item in items]

    def take(self, items: Sequence[Item]) -> Run:
        """The run of some of the items, in the given order."""
        return self.take_rows(self.rows_of(items))

    def take_rows(self, rows: Sequence[int]) -> Run:
        """The run of some rows, in the given order; all rows in their order are the run itself, without a copy."""
        if list(rows) == list(range(len(self.items))):
            return self
        return replace(
            self,
            unrolled=take(self.unrolled, rows),
            text=tuple(self.text[row] for row in rows),
            choice=tuple(self.choice[row] for row in rows),
            option_logprobs=self.option_logprobs[list(rows)],
        )


def merge_runs(runs: Sequence[Run]) -> Run:
    """Runs of consecutive batches as one run."""
    width = max(run.option_logprobs.shape[1] for run in runs)
    padded = [_widened(run.option_logprobs, width) for run in runs]
    return Run(
        concatenate([run.unrolled for run in runs]),
        tuple(text for run in runs for text in run.text),
        tuple(choice for run in runs for choice in run.choice),
        torch.cat(padded),
        runs[0].latent_steps,
        runs[0].donors,
    )


def _widened(logprobs: Float[Tensor, "batch option"], width: int) -> Float[Tensor, "batch width"]:
    """More options: -inf, but NaN in rows without an answer."""
    wide = F.pad(logprobs, (0, width - logprobs.shape[1]), value=float("-inf"))
    return wide.masked_fill(logprobs.isnan().any(1, keepdim=True), float("nan"))
