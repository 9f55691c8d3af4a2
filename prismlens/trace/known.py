"""What an operation may know about the positions that it changes: one `Context` for each write; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions import Context, Edit, Patch, Swap, Transplant
from prismlens.interventions.placed import Placed
from prismlens.positions.places import Place, places
from prismlens.trace.reference import Statistics
from prismlens.unrolled import Unrolled

Where = tuple[Edit, str]
"""An edit and the name of one of its sites."""


@dataclass(frozen=True, eq=False)
class Known:
    """Everything that was measured or looked up before the run.

    Args:
        clean: values of clean runs, for edits that take some over.
        statistics: means and spreads of clean runs, for edits that need them.
        donors: item id -> donor id, by edit that swaps.
        targets: item id -> the image features that its latents stand for.
    """

    clean: Mapping[Where, Placed] = field(default_factory=dict)
    statistics: Mapping[Where, Statistics] = field(default_factory=dict)
    donors: Mapping[Edit, Mapping[str, str]] = field(default_factory=dict)
    targets: Mapping[str, Float[Tensor, "step d_model"]] = field(default_factory=dict)

    def context(
        self,
        edit: Edit,
        site: str,
        run: Unrolled,
        rows: Int[Tensor, " n"],
        columns: Int[Tensor, " n"],
        mask: Bool[Tensor, "batch pos"],
    ) -> Context:
        """What the operation may know about the selected positions, in their order; `mask`: the role's, so far."""
        ids = tuple(run.items[row].id for row in rows.tolist())
        needs, steps = edit.op.needs, run.steps[rows, columns]
        at: list[Place] = [(group, number) for group, number in places(run, mask)[rows, columns].tolist()]
        facts: dict[str, Tensor] = {}
        if needs & {"mean", "std", "spread"}:
            statistics = self.statistics[edit, site]
            measures = {"mean": statistics.mean, "std": statistics.std, "spread": statistics.std}
            facts = {name: measures[name](at) for name in sorted(needs & set(measures))}
        if "donors" in needs:
            facts["donors"] = self._donors(edit, site, ids, at)
        if isinstance(edit.op, Patch):
            source = edit.op.source.at(site)
            facts["source"] = source.take([(item, item, place) for item, place in zip(ids, at, strict=True)])
        if "targets" in needs:
            facts["targets"] = self._targets(edit, ids, steps.tolist())
        offsets = (run.valid.long().cumsum(1) - 1)[rows, columns]
        return Context(item_ids=ids, steps=steps, seed=edit.seed, site=site, offsets=offsets, **facts)

    def _donors(self, edit: Edit, site: str, ids: Sequence[str], at: Sequence[Place]) -> Float[Tensor, "n d"]:
        """The clean value that each position takes over: a donor's at the same place, or the item's at another."""
        clean, op = self.clean[edit, site], edit.op
        assert isinstance(op, Transplant)
        if isinstance(op, Swap):
            donors = self.donors[edit]
            return clean.take([(item, donors[item], place) for item, place in zip(ids, at, strict=True)])
        orders: dict[tuple[str, int], dict[Place, Place]] = {}
        for item, place in zip(ids, at, strict=True):
            if (item, place[0]) not in orders:
                own = clean.neighbours(item, place)
                drawn = op.order(len(own), f"{edit.seed}|{item}|{place[0]}")
                orders[item, place[0]] = {one: own[number] for one, number in zip(own, drawn, strict=True)}
        # A place that the clean run lacks stays as it is, and `take` says so.
        wanted = [(item, item, orders[item, place[0]].get(place, place)) for item, place in zip(ids, at, strict=True)]
        return clean.take(wanted)

    def _targets(self, edit: Edit, ids: Sequence[str], steps: Sequence[int]) -> Float[Tensor, "n d_model"]:
        """The target of each selected latent."""
        beyond = sorted({i for i, k in zip(ids, steps, strict=True) if not 0 <= k < len(self.targets[i])})
        if beyond:
            raise EditError(
                f"{edit} has no target for some positions of {len(beyond)} items: {', '.join(beyond[:5])}",
                needed="latents of one block, within its budget",
                cause="the role names other positions too, or the model entered a second block",
                fix=f"choose latent, or latent[:{len(next(iter(self.targets.values())))}]",
            )
        return torch.stack([self.targets[i][k] for i, k in zip(ids, steps, strict=True)])
