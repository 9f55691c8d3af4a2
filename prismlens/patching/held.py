"""Patched forwards with everything held but what lies behind the patch; many cells at once, only the layers above."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.models.resume import Resume
from prismlens.models.visibility import LayerMasks
from prismlens.patching.cells import Cell
from prismlens.patching.metric import Measure
from prismlens.patching.places import Places
from prismlens.patching.states import States, entry, spelled_out, step_masks, write
from prismlens.sites import LATENT, site
from prismlens.trace.batch import Engine
from prismlens.trace.forward import Read, Write, traced_step

COLUMNS = 16
"""Patched forwards start at a multiple of so many columns: each start needs a forward without a patch, too."""

Rows = list[tuple[int, int]]
"""(number of the cell, pair) of every row of a forward."""


@dataclass(frozen=True)
class Start:
    """What the patched forwards of some cells have in common.

    Args:
        layer: the first layer that runs.
        column: the first column that runs; what earlier ones are is read from the cache.
        name: the site that is written.
    """

    layer: int
    column: int
    name: str


@dataclass(eq=False)
class HeldPatches:
    """Patched forwards over some pairs.

    Args:
        engine: the model.
        receiver: the side that is patched, with `entry` of every layer.
        donor: the side that the patches are taken from, with the values of every site.
        places: of these pairs.
        measure: of these pairs.
        source: the column that decides, by pair.
        batch_size: most rows a forward.
    """

    engine: Engine
    receiver: States
    donor: States
    places: Places
    measure: Measure
    source: Int[Tensor, " pair"]
    batch_size: int
    _masks: LayerMasks = field(init=False)
    _plain: dict[tuple[int, int, bool, tuple[int, ...]], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._masks = step_masks(self.engine, self.receiver.run, self.receiver.width)

    @torch.no_grad()
    def __call__(self, cells: Sequence[Cell]) -> Iterator[tuple[int, int, float, float]]:
        """(number of the cell, pair, metric without the patch, metric with it) of every cell and pair that has it.

        Both numbers come from forwards of one shape, so that a patch without effect changes no bit.
        """
        for start, rows in self._forwards(cells):
            pairs = [pair for _, pair in rows]
            key = (start.layer, start.column, spelled_out(start.name, self.engine.hf.n_layers), tuple(pairs))
            if key not in self._plain:
                self._plain[key] = self._metric(start, rows, cells, patched=False)
            patched = self._metric(start, rows, cells, patched=True)
            plain = self._plain[key].tolist()
            yield from (
                (cell, pair, before, after)
                for (cell, pair), before, after in zip(rows, plain, patched.tolist(), strict=True)
            )

    def _forwards(self, cells: Sequence[Cell]) -> Iterator[tuple[Start, Rows]]:
        """The rows of every forward: cells with one start, whole cells, as many as fit."""
        grouped: dict[Start, list[Rows]] = defaultdict(list)
        for number, cell in enumerate(cells):
            mask = self.places.masks[cell.place]
            pairs = mask.any(1).nonzero().flatten().tolist()
            if not pairs:
                continue
            first = int(mask.any(0).nonzero()[0])
            grouped[Start(cell.layer or 0, first - first % COLUMNS, cell.name)].append([(number, p) for p in pairs])
        for start, parts in grouped.items():
            rows: Rows = []
            for part in parts:
                if rows and len(rows) + len(part) > self.batch_size:
                    yield start, rows
                    rows = []
                rows = rows + part
            yield start, rows

    def _metric(self, start: Start, rows: Rows, cells: Sequence[Cell], *, patched: bool) -> Float[Tensor, " row"]:
        """The metric of every row of one forward."""
        pairs = torch.tensor([pair for _, pair in rows], device=self.source.device)
        inputs = self._inputs(start, pairs)
        hf = self.engine.hf
        chosen = [cells[number] for number, _ in rows]
        places = torch.tensor([cell.place for cell in chosen], device=pairs.device)
        mask = self.places.masks[places, pairs][:, start.column :]
        # In a replay the vector that is fed is what enters the first layer.
        name = entry(0) if start.name == LATENT else start.name
        writes: list[Write] = []
        if patched:
            given = self.donor.values[start.name][pairs][:, start.column :]
            heads = [cell.head for cell in chosen if cell.head is not None]
            head = torch.tensor(heads, device=pairs.device) if heads else None
            writes = [write(self.engine, name, mask, given, head)]
        # A read where nothing is written: some sites exist in another arithmetic of attention only.
        reads = [] if patched else [Read(site(name, hf.n_layers), mask)]
        hidden = traced_step(self.engine.wrapper, inputs, writes, reads).output.hidden
        at = hidden[torch.arange(len(rows), device=hidden.device), self.source[pairs] - start.column]
        return self.measure(hf.lm_head(at), pairs.tolist())

    def _inputs(self, start: Start, pairs: Int[Tensor, " row"]) -> dict:
        """Keyword arguments of a `step` over the columns and layers from the start on."""
        states, columns = self.receiver, slice(start.column, self.receiver.width)
        cut = {id(mask): mask[pairs][:, :, columns] for mask in self._masks}
        return {
            "input_ids": states.run.input_ids[pairs][:, columns],
            "position_ids": states.run.position_ids[:, pairs][:, :, columns],
            "attention_mask": LayerMasks(cut[id(mask)] for mask in self._masks),
            "past_key_values": self._past(start, pairs),
            "resume": Resume(start.layer, states.values[entry(start.layer)][pairs][:, columns]),
            "keep": slice(0),
        }

    def _past(self, start: Start, pairs: Int[Tensor, " row"]) -> DynamicCache | None:
        """Keys and values of the columns before the start, in the layers that run."""
        if start.column == 0:
            return None
        text = self.engine.hf.config.text
        past = DynamicCache(config=text)
        for layer in range(start.layer, self.engine.hf.n_layers):
            known: Any = self.receiver.cache.layers[layer]
            past.update(known.keys[pairs][:, :, : start.column], known.values[pairs][:, :, : start.column], layer)
        return past
