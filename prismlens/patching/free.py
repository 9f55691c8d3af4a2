"""Patched runs in which the model unrolls again: a patch acts through the latents too; many cells at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prismlens.models.answers import answer_start
from prismlens.models.loop import LoopSettings, plain_forward, unroll
from prismlens.models.lvr import StepOutput
from prismlens.patching.cells import Cell
from prismlens.patching.metric import Measure
from prismlens.patching.places import Places
from prismlens.patching.states import States, spelled_out, write
from prismlens.sites import site
from prismlens.trace.batch import Engine
from prismlens.trace.forward import Read, traced_step
from prismlens.unrolled import Segment, Unrolled

Rows = list[tuple[int, int]]
"""(number of the cell, pair) of every row of a run."""


@dataclass(frozen=True, eq=False)
class Patch:
    """What is written into one batch of runs, in the columns of the batch.

    Args:
        name: the site.
        mask: where; as wide as the columns that may be patched.
        given: what.
        heads: the head of each row; None for all of the value.
    """

    name: str
    mask: Bool[Tensor, "row pos"]
    given: Float[Tensor, "row pos *rest"]
    heads: Tensor | None


@dataclass(eq=False)
class FreePatches:
    """Patched runs over some pairs.

    Args:
        engine: the model.
        receiver: the finished sequences of the side that is patched.
        donor: the side that the patches are taken from, with the values of every site.
        places: of these pairs.
        measure: of these pairs.
        settings: of the loop.
        batch_size: most rows a run.
    """

    engine: Engine
    receiver: Unrolled
    donor: States
    places: Places
    measure: Measure
    settings: LoopSettings
    batch_size: int
    _plain: dict[tuple[bool, tuple[int, ...]], Tensor] = field(default_factory=dict, init=False)

    def __call__(self, cells: Sequence[Cell]) -> Iterator[tuple[int, int, float, float]]:
        """(number of the cell, pair, metric without the patch, metric with it) of every cell and pair that has it.

        A patched run that writes no answer, or does not reach the patched position, has NaN. Both numbers come from
        runs of one shape, so that a patch without effect changes no bit.
        """
        for name, rows in self._runs(cells):
            pairs = [pair for _, pair in rows]
            key = (spelled_out(name, self.engine.hf.n_layers), tuple(pairs))
            patch = self._patch(name, rows, cells)
            if key not in self._plain:
                nothing = replace(patch, mask=torch.zeros_like(patch.mask))
                self._plain[key] = self.metric(self.receiver, pairs, nothing)
            patched = self.metric(self.receiver, pairs, patch).tolist()
            plain = self._plain[key].tolist()
            yield from (
                (cell, pair, before, after) for (cell, pair), before, after in zip(rows, plain, patched, strict=True)
            )

    def _runs(self, cells: Sequence[Cell]) -> Iterator[tuple[str, Rows]]:
        """The rows of every run: cells of one site, whole cells, as many as fit."""
        grouped: dict[str, list[Rows]] = defaultdict(list)
        for number, cell in enumerate(cells):
            pairs = self.places.masks[cell.place].any(1).nonzero().flatten().tolist()
            if pairs:
                grouped[cell.name].append([(number, pair) for pair in pairs])
        for name, parts in grouped.items():
            rows: Rows = []
            for part in parts:
                if rows and len(rows) + len(part) > self.batch_size:
                    yield name, rows
                    rows = []
                rows = rows + part
            yield name, rows

    def _patch(self, name: str, rows: Rows, cells: Sequence[Cell]) -> Patch:
        """What is written into a run of these rows, in the columns of the receiver."""
        chosen = [cells[number] for number, _ in rows]
        pairs = torch.tensor([pair for _, pair in rows], device=self.receiver.device)
        places = torch.tensor([cell.place for cell in chosen], device=pairs.device)
        heads = [cell.head for cell in chosen if cell.head is not None]
        head = torch.tensor(heads, device=pairs.device) if heads else None
        return Patch(name, self.places.masks[places, pairs], self.donor.values[name][pairs], head)

    @torch.no_grad()
    def metric(self, side: Unrolled, pairs: Sequence[int], patch: Patch | None = None) -> Float[Tensor, " row"]:
        """Run one side of these pairs anew and measure where each answer starts; NaN where there is none."""
        prompt = self.engine.processor([side.items[pair] for pair in pairs])
        width = prompt.input_ids.shape[1]
        logits: list[Tensor] = []
        reached: list[Tensor] = []

        def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
            if patch is None:
                output = plain(unrolled, n_queries, **inputs)
            else:
                # Columns are counted from the end of the prompt: other rows of the receiver may have longer prompts.
                stop = unrolled.shape[1] + side.n_prompt - width
                now = patch.mask[:, stop - n_queries : stop]
                reached.append(now.sum(1))
                output = self._step(inputs, patch, now, patch.given[:, stop - n_queries : stop])
            logits.append(output.logits[:, -1])
            return output

        plain = plain_forward(self.engine.hf)
        run = unroll(self.engine.hf, prompt, self.settings, forward=forward)
        first = torch.tensor([_answer_first(self.engine, run, row) for row in range(len(pairs))], device=run.device)
        complete = first >= 0
        if patch is not None:
            complete = complete & (torch.stack(reached).sum(0) == patch.mask.sum(1))
        rows = torch.arange(len(pairs), device=run.device)
        at = torch.stack(logits, 1)[rows, (first - run.n_prompt).clamp(min=0)]
        return self.measure(at, pairs).masked_fill(~complete, float("nan"))

    def _step(self, inputs: dict, patch: Patch, now: Tensor, given: Tensor) -> StepOutput:
        """One forward, patched where there is something to patch in its columns."""
        if bool(now.any()):
            one = write(self.engine, patch.name, now, given, patch.heads)
            return traced_step(self.engine.wrapper, inputs, [one], []).output
        if not spelled_out(patch.name, self.engine.hf.n_layers):
            return self.engine.hf.step(**inputs)
        # The whole run in one arithmetic of attention, or a patch without effect would change last bits.
        nothing = Read(site(patch.name, self.engine.hf.n_layers), now)
        return traced_step(self.engine.wrapper, inputs, [], [nothing]).output


def _answer_first(engine: Engine, run: Unrolled, row: int) -> int:
    """The column of the first token of a row's answer, -1 where there is none."""
    columns = (run.segments[row] == Segment.ANSWER).nonzero().flatten().tolist()
    start = answer_start(engine.processor, run.input_ids[row, columns].tolist())
    return -1 if start is None else columns[start]
