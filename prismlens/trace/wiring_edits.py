"""Whether a change at each site of each layer arrives, and a change of nothing changes nothing; knows no items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from nnsight import NNsight
from torch import Tensor

from prismlens.models.latent import LatentModel, StepOutput
from prismlens.sites import site
from prismlens.trace.forward import Read, Traced, Write, traced_step
from prismlens.trace.wiring_run import repeated
from prismlens.unrolled import Segment, Unrolled

PRE, POST = "hook_resid_pre", "hook_resid_post"
SHIFT = 0.5
ORDINARY = 1e4
"""Larger numbers are those of masks, and stay as they are."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The copies of one sequence in a batch: row r is for the r-th kind of site, at every layer.

    Args:
        kinds: names inside a block, and whole names of the sites outside.
        valid: the positions of the sequence.
    """

    kinds: tuple[str, ...]
    valid: Bool[Tensor, "1 pos"]

    def mask(self, *kinds: str) -> Bool[Tensor, "batch pos"]:
        """True at the positions of the rows of some kinds."""
        out = self.valid.repeat(len(self.kinds), 1)
        out[[row for row, kind in enumerate(self.kinds) if kind not in kinds]] = False
        return out

    def all(self) -> Bool[Tensor, "batch pos"]:
        """True at the positions of all rows."""
        return self.valid.repeat(len(self.kinds), 1)

    def part(self, values: Tensor, kind: str) -> Tensor:
        """The values of one kind's row, out of those of all rows."""
        return values.unflatten(0, (len(self.kinds), -1))[self.kinds.index(kind)]


def dead_sites(
    hf: LatentModel, wrapper: NNsight, inputs: dict[str, Any], one: Unrolled, names: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Sites at which a change does not arrive where it should, or at which a change of nothing changes something.

    All layers are tried in one forward over copies of one sequence, a row for each kind of site. What enters a layer is
    put back in the rows of sites inside blocks, so that a row differs from its twin without edits by the change in this
    very layer alone; the row of ``hook_resid_post`` goes on, to show that the next block is given what was written.

    Args:
        hf, wrapper: the model, and its nnsight wrapper.
        inputs: arguments of `step` for the run whose first sequence is copied.
        one: that sequence.
        names: of the sites.
    """
    rows = _Rows(tuple(dict.fromkeys(_kind(name, hf.n_layers) for name in names)), one.valid)
    batch = repeated(hf, inputs, one, len(rows.kinds))
    bare = hf.step(**batch)
    yield from _loud(hf, wrapper, batch, rows, names, bare)
    clean = _inputs_of_layers(hf, wrapper, batch, rows)
    plain, edited = (_forward(hf, wrapper, batch, rows, clean, names, change) for change in (False, True))
    deep, image = batch.get("deep_features", ()), (one.segments == Segment.IMAGE)[one.valid]
    for name in names:
        kind, layer = _kind(name, hf.n_layers), _layer(name)
        if layer is None or kind == name:
            if _same_row(plain.output, edited.output, rows.kinds.index(kind)):
                yield name, "edit", "a change of it changes nothing that the forward gives"
        elif kind == POST:
            written = rows.part(edited.values[name], kind).clone()
            if layer < len(deep):
                written[image] += deep[layer][: int(image.sum())].to(written.dtype)
            coming = f"blocks.{layer + 1}.{PRE}"
            if not torch.equal(written, rows.part(edited.values[coming], kind)):
                yield name, "edit", f"what is written there does not reach {coming}"
        else:
            after = f"blocks.{layer}.{POST}"
            if torch.equal(rows.part(plain.values[after], kind), rows.part(edited.values[after], kind)):
                yield name, "edit", f"a change of it does not change {after}"


def _loud(
    hf: LatentModel, wrapper: NNsight, batch: dict[str, Any], rows: _Rows, names: Sequence[str], bare: StepOutput
) -> Iterator[tuple[str, str, str]]:
    """Sites at which writing what is there changes the output: all at once first, then, if need be, one by one."""

    def changed(some: Sequence[str]) -> bool:
        writes = [Write(site(name, hf.n_layers), rows.all(), lambda values, _: values.clone()) for name in some]
        output = traced_step(wrapper, batch, writes, []).output
        return not all(_same_row(output, bare, row) for row in range(len(rows.kinds)))

    if changed(names):
        loud = [name for name in names if changed([name])]
        for name in loud or names[:1]:
            yield name, "no-op", "writing the values that are there changes the output"


def _forward(
    hf: LatentModel,
    wrapper: NNsight,
    batch: dict[str, Any],
    rows: _Rows,
    clean: Sequence[Tensor],
    names: Sequence[str],
    change: bool,
) -> Traced:
    """One forward with the layers' inputs put back where they have to be, and, if `change`, every row's edits."""
    writes: list[Write] = []
    kinds = dict.fromkeys(_kind(name, hf.n_layers) for name in names if _layer(name) is not None)
    inside = tuple(kind for kind in kinds if kind != POST)
    for layer in range(1, hf.n_layers):
        value = clean[layer].repeat(len(inside), 1)
        entrance = site(f"blocks.{layer}.{PRE}", hf.n_layers)
        writes.append(Write(entrance, rows.mask(*inside), lambda _, __, value=value: value))
    for name in names if change else ():
        writes.append(Write(site(name, hf.n_layers), rows.mask(_kind(name, hf.n_layers)), _shifted))
    ends = [site(f"blocks.{layer}.{end}", hf.n_layers) for layer in range(hf.n_layers) for end in (PRE, POST)]
    return traced_step(wrapper, batch, writes, [Read(end, rows.all()) for end in ends])


def _inputs_of_layers(hf: LatentModel, wrapper: NNsight, batch: dict[str, Any], rows: _Rows) -> list[Tensor]:
    """What enters each layer in a forward without edits, for one row."""
    names = [f"blocks.{layer}.{PRE}" for layer in range(hf.n_layers)]
    first = rows.mask(rows.kinds[0])
    read = traced_step(wrapper, batch, [], [Read(site(name, hf.n_layers), first) for name in names]).values
    return [read[name] for name in names]


def _shifted(values: Tensor, _: Tensor) -> Tensor:
    """The values moved by seeded noise of about their own size; a constant would leave attention to keys as it is."""
    ordinary = values.abs() < ORDINARY
    size = values[ordinary].float().square().mean().sqrt() + 1e-3
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values.device)
    return torch.where(ordinary, values + (SHIFT * size * noise).to(values.dtype), values)


def _kind(name: str, n_layers: int) -> str:
    """What a row is for: the name inside a block, or a whole name: of a site outside, or of the last block's end."""
    layer = _layer(name)
    last = name == f"blocks.{n_layers - 1}.{POST}"
    return name if layer is None or last else name.split(".", 2)[2]


def _layer(name: str) -> int | None:
    """The layer of a site; None outside the blocks."""
    return int(name.split(".", 2)[1]) if name.startswith("blocks.") else None


def _same_row(one: StepOutput, other: StepOutput, row: int) -> bool:
    """Whether two outputs are equal in a row, bit for bit."""
    return all(
        torch.equal(getattr(one, part)[row], getattr(other, part)[row]) for part in ("hidden", "logits", "latent")
    )
