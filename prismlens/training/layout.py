"""Packs to one batch of columns: who shares an image, who sees whom, where slots and labels lie; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prismlens.errors import SettingError
from prismlens.training.batch import Batch, Pack
from prismlens.training.examples import IGNORE, Example
from prismlens.training.scenes import FACTS
from prismlens.unrolled import Segment, Unrolled


def collate(
    packs: Sequence[Pack],
    *,
    width: int,
    waves: bool,
    stage_names: tuple[str, ...] = (),
    free_id: int | None = None,
    other: bool = False,
) -> Batch:
    """Lay packs out as one batch.

    Args:
        packs: of one phase.
        width: of the model, for the empty latents.
        waves: put all prompts first, then every example's first slot, and so on, so that the latents can be unrolled;
            otherwise an example's columns lie together.
        stage_names: of the stages with latents, in order, and ``"free"`` last where there are free tokens.
        free_id: the free token's id.
        other: slots are taught the box tokens of the next group instead of their own.

    Raises:
        SettingError: packs of different phases; or waves are asked for and the examples have different numbers of
            latents.
    """
    if len({pack.phase for pack in packs}) != 1:
        raise SettingError("packs of several phases in one batch", needed="one phase")
    rows = [_row(pack, waves) for pack in packs]
    if waves:
        _same_waves(rows)
    n_waves = max(len(row) for row in rows)
    widths = [max(sum(len(p.ids) for p in row[w]) if w < len(row) else 0 for row in rows) for w in range(n_waves)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    table = _Table.empty(len(rows), int(starts[-1]))
    offset = 0
    free: list[np.ndarray] = []
    for number, (pack, row) in enumerate(zip(packs, rows, strict=True)):
        columns = _columns(row, starts)
        offset = table.fill(number, pack, columns, offset, free_id, free)
    if other:
        table.swap_targets(packs)
    if free:
        table.stages[table.ids == free_id] = len(stage_names) - 1
    return _batch(table, packs, tuple(starts[1:].tolist()), width, free, stage_names)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Tokens of one example (or of a group's prefix, `example` -1) that stay together."""

    group: int
    example: int
    ids: tuple[int, ...]


def _row(pack: Pack, waves: bool) -> list[list[_Piece]]:
    """The pieces of a row, wave by wave."""
    out: list[list[_Piece]] = [[]]
    number = 0
    for g, group in enumerate(pack.groups):
        out[0].append(_Piece(g, -1, group.prefix[0]))
        for example in group.examples:
            wave = 0
            for part in example.parts:
                pieces = [(token,) for token in part.ids] if part.slots and waves else [part.ids]
                for ids in pieces:
                    if wave == len(out):
                        out.append([])
                    out[wave].append(_Piece(g, number, ids))
                    wave += 1 if waves else 0
            number += 1
    return out


def _same_waves(rows: Sequence[list[list[_Piece]]]) -> None:
    """Every example takes part in every wave."""
    for row in rows:
        counts = {sum(piece.example >= 0 for piece in wave) for wave in row}
        if len(counts) != 1 or len(row) != len(rows[0]):
            raise SettingError(
                "examples with different numbers of latents in one batch",
                needed="the same number: they are unrolled together",
                cause='slots="box", where a bigger box has more latents',
                fix='train through own latents with slots="budget"',
            )


def _columns(row: Sequence[Sequence[_Piece]], starts: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The columns of every prefix, (group, -1), and of every example, (group, number), in the order of its tokens."""
    out: dict[tuple[int, int], list[np.ndarray]] = {}
    for wave, pieces in enumerate(row):
        at = int(starts[wave])
        for piece in pieces:
            out.setdefault((piece.group, piece.example), []).append(np.arange(at, at + len(piece.ids)))
            at += len(piece.ids)
    return {key: np.concatenate(parts) for key, parts in out.items()}


@dataclass(frozen=True)
class _Table:
    """The columns being filled, as arrays."""

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    blocks: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    facts: np.ndarray
    words: np.ndarray
    feature: np.ndarray
    part: np.ndarray
    source: np.ndarray
    stages: np.ndarray
    last: np.ndarray

    @classmethod
    def empty(cls, batch: int, total: int) -> _Table:
        def full(value: int, *more: int) -> np.ndarray:
            return np.full((batch, total, *more), value)

        return cls(
            full(0), full(int(Segment.PAD)), full(0, 3), full(-1), full(-1), full(IGNORE), full(IGNORE, len(FACTS)),
            full(IGNORE), full(-1), full(-1), full(-1), full(-1), full(0),
        )  # fmt: skip

    def fill(
        self,
        row: int,
        pack: Pack,
        columns: dict[tuple[int, int], np.ndarray],
        offset: int,
        free_id: int | None,
        free: list[np.ndarray],
    ) -> int:
        """Write one row; return the number of image tokens so far."""
        number = 0
        for g, group in enumerate(pack.groups):
            at = columns[g, -1]
            ids, segments = (np.array(part) for part in group.prefix)
            positions = mrope(segments == Segment.IMAGE, group.grid)
            self.ids[row, at], self.segments[row, at], self.positions[row, at] = ids, segments, positions
            self.groups[row, at], self.blocks[row, at] = g, -1 - g
            for example in group.examples:
                self._example(row, g, number, example, columns[g, number], (offset, int(positions.max()) + 1))
                if free_id is not None:
                    found = columns[g, number][self.ids[row, columns[g, number]] == free_id]
                    free += [np.stack([np.full(len(found), row), found], 1)] if len(found) else []
                number += 1
            offset += group.grid[0] * group.grid[1]
        return offset

    def _example(
        self, row: int, group: int, number: int, example: Example, at: np.ndarray, begin: tuple[int, int]
    ) -> None:
        """One example's columns; `begin`: its image's first feature, and its first position."""
        offset, first = begin
        for name in ("ids", "segments"):
            getattr(self, name)[row, at] = [value for part in example.parts for value in getattr(part, name)]
        self.positions[row, at] = (first + np.arange(len(at)))[:, None]
        self.groups[row, at], self.blocks[row, at] = group, number
        self.labels[row, at] = example.labels
        for index, facts in example.facts:
            self.facts[row, at[index]] = facts
        done = 0
        for part in example.parts:
            here = at[done : done + len(part.ids)]
            if part.slots:
                self.feature[row, here] = offset + np.array(part.slots)
                self.part[row, here] = (group * 1000 + np.array(part.boxes)) * 100 + part.stage
                self.source[row, here] = at[done - 1 : done + len(part.ids) - 1]
                self.words[row, here] = example.first_word if example.first_word >= 0 else IGNORE
                self.stages[row, here] = part.stage
                self.last[row, here[-1]] = 1
            done += len(part.ids)

    def swap_targets(self, packs: Sequence[Pack]) -> None:
        """Every group's slots are taught the tokens of the next group's slots, as many as it needs."""
        owner, where = [], []
        for row, pack in enumerate(packs):
            for g in range(len(pack.groups)):
                owner.append((row, self.groups[row] == g))
        where = [self.feature[row, mask & (self.feature[row] >= 0)].copy() for row, mask in owner]
        if len(where) < 2:
            raise SettingError("a batch of one image", needed="two, where slots are taught another item's tokens")
        for (row, mask), theirs in zip(owner, where[1:] + where[:1], strict=True):
            slots = mask & (self.feature[row] >= 0)
            self.feature[row, slots] = np.resize(theirs, int(slots.sum()))


def mrope(is_image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """M-RoPE ids ``[token, 3]`` of text around one image: one a token in text; the row and column in the image.

    Text after the image goes on after the largest id so far (Qwen2.5-VL's rule for a still image).
    """
    inside = np.flatnonzero(is_image)
    head, rest = int(inside[0]), len(is_image) - int(inside[-1]) - 1
    index = np.arange(len(inside))
    rows, columns = head + index // grid[1], head + index % grid[1]
    image = np.stack([np.full(len(inside), head), rows, columns], 1)
    after = head + max(grid) + np.arange(rest)
    return np.concatenate([np.repeat(np.arange(head)[:, None], 3, 1), image, np.repeat(after[:, None], 3, 1)])


def _batch(
    table: _Table,
    packs: Sequence[Pack],
    cuts: tuple[int, ...],
    width: int,
    free: list[np.ndarray],
    stage_names: tuple[str, ...],
) -> Batch:
    """The table as tensors, slots gathered from their columns."""
    slots = table.segments == Segment.LATENT
    steps = np.where(slots, np.cumsum(slots, 1) - 1, -1)
    per_row = slots.sum(1)
    most = int(per_row.max(initial=0))

    def gathered(values: np.ndarray, empty: int) -> Tensor:
        out = np.full((len(packs), most), empty)
        for row in range(len(packs)):
            out[row, : per_row[row]] = values[row, slots[row]]
        return torch.from_numpy(out)

    groups = [group for pack in packs for group in pack.groups]
    cached = groups[0].features is not None
    batch, total = table.ids.shape
    unrolled = Unrolled(
        items=(), input_ids=torch.from_numpy(table.ids), segments=torch.from_numpy(table.segments),
        steps=torch.from_numpy(steps), patches=torch.full((batch, total, 2), -1),
        grids=torch.zeros(batch, 2, dtype=torch.long),
        position_ids=torch.from_numpy(table.positions).permute(2, 0, 1), latents=torch.zeros(batch, most, width),
        n_latents=torch.from_numpy(per_row), n_prompt=0, answer_first=torch.full((batch,), -1),
        stages=torch.from_numpy(table.stages), stage_names=stage_names,
    )  # fmt: skip
    longest = max((len(f) for f in free), default=0)
    return Batch(
        unrolled, torch.from_numpy(table.blocks), torch.from_numpy(table.groups), torch.from_numpy(table.labels),
        torch.from_numpy(table.facts), gathered(table.words, IGNORE), gathered(table.feature, -1),
        gathered(table.part, -1), gathered(table.source, 0), torch.from_numpy(np.argwhere(table.last)),
        torch.from_numpy(np.stack(free)) if free else torch.zeros(0, longest, 2, dtype=torch.long), cuts,
        packs[0].phase, tuple(pack.seed for pack in packs),
        tuple(tuple(e.id for g in pack.groups for e in g.examples) for pack in packs),
        torch.cat([g.features for g in groups if g.features is not None]) if cached else None,
        None if cached else torch.cat([g.pixels for g in groups if g.pixels is not None]),
        None if cached else torch.stack([g.grid_thw for g in groups if g.grid_thw is not None]),
    )  # fmt: skip
