"""Clean values of all sites that a sweep's edits need, read in one replay a batch; knows no operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.interventions import Edit
from prismlens.models.loop import replay_inputs
from prismlens.positions import Positions, Role, resolve
from prismlens.sites import LATENT, expand, site
from prismlens.trace.batch import Engine, check_replay
from prismlens.trace.forward import Read, traced_step
from prismlens.trace.prepared import measures
from prismlens.trace.run import Run
from prismlens.unrolled import Unrolled

Wanted = Mapping[str, tuple[Role, ...]]
"""Site name -> the roles at whose positions it is to be read, each once."""


def wanted_values(edits: Sequence[Edit], n_layers: int) -> Wanted:
    """What these edits need from clean runs: each (site, positions) once, whatever their number."""
    out: dict[str, dict[Role, None]] = {}
    for edit in edits:
        if measures(edit):
            for one in expand(edit.site, n_layers):
                out.setdefault(one.name, {})[edit.positions] = None
    return {name: tuple(roles) for name, roles in out.items()}


@torch.no_grad()
def read_clean(
    engine: Engine, run: Unrolled, wanted: Wanted, vision: Mapping[str, Any]
) -> dict[str, Float[Tensor, "n *d"]]:
    """The wanted sites' values in finished clean sequences, flat, in the order of rows and columns.

    One forward over the sequences, unless nothing but the vectors that are fed back is wanted.

    Items that lack a role simply have no values: who has to have it is for the edits to say.

    Raises:
        PrismlensError: the replay's states differ from those of the run by more than rounding.
    """
    chosen = {name: _mask(name, roles, run) for name, roles in wanted.items()}
    values: dict[str, Tensor] = {}
    if LATENT in chosen and bool(chosen[LATENT].any()):
        # What is fed back is what the run recorded: no forward is needed to read it again.
        rows, columns = chosen.pop(LATENT).nonzero(as_tuple=True)
        values[LATENT] = run.latents[rows, run.steps[rows, columns]]
    reads = [Read(site(name, engine.hf.n_layers), mask) for name, mask in chosen.items() if bool(mask.any())]
    if not reads:
        return values
    inputs = replay_inputs(engine.hf, run) | dict(vision) | {"keep": slice(0)}
    traced = traced_step(engine.wrapper, inputs, [], reads)
    check_replay(run, traced.output.latent)
    return values | traced.values


@dataclass(frozen=True, eq=False)
class CleanValues:
    """The values of `read_clean`, by site name and item id, an item's in the order of its positions."""

    wanted: Wanted
    values: Mapping[str, Mapping[str, Float[Tensor, "pos *d"]]]

    def cache(self, names: Sequence[str], positions: Role, run: Run) -> ActivationCache:
        """The activations of a clean run at one role, as `run_with_cache` would give them.

        Args:
            names: sites that were read at this role.
            positions: the role.
            run: of some of the items, in any order.

        Raises:
            RoleError: an item lacks the role.
        """
        unrolled = run.unrolled
        where = resolve(positions, unrolled)
        at_role = torch.zeros_like(unrolled.valid)
        at_role[where.rows, where.columns] = True
        flat = {name: self._flat(name, at_role, unrolled) for name in names}
        return ActivationCache(flat, Positions(where.rows, where.columns), unrolled)

    def _flat(self, name: str, at_role: Bool[Tensor, "batch pos"], run: Unrolled) -> Float[Tensor, "n *d"]:
        """One site's values at the role, all items' one after the other."""
        read = _mask(name, self.wanted[name], run)
        parts = []
        for row, item in enumerate(run.items):
            if bool(read[row].any()):
                own = self.values[name][item.id]
                parts.append(own[at_role[row, read[row]].to(own.device)])
        return torch.cat(parts)


def split_by_item(values: Float[Tensor, "n *d"], name: str, wanted: Wanted, run: Unrolled) -> dict[str, Tensor]:
    """One site's flat values, item by item."""
    counts = _mask(name, wanted[name], run).sum(1).tolist()
    return {item.id: part for item, part in zip(run.items, values.split(counts), strict=True)}


def _mask(name: str, roles: Sequence[Role], run: Unrolled) -> Bool[Tensor, "batch pos"]:
    """Where a site is read: at any of the roles; the vectors that are fed back exist at latents alone."""
    mask = reduce(or_, [role.mask(run) for role in roles])
    return mask & (run.steps >= 0) if name == LATENT else mask
