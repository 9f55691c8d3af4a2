"""Reads one vector an item at every layer and role, in one run and one replay; knows no labels and no probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.errors import RoleError, SettingError
from prismlens.positions import Role, answer, image, latent, question, resolve
from prismlens.sites import UNEMBED_IN, get_act_name, site
from prismlens.trace import PrismModel, Run
from prismlens.types import Item

EMBEDDING, FINAL = get_act_name("resid_pre", 0), UNEMBED_IN
ON_MISSING = ("raise", "drop")


@dataclass(frozen=True)
class Place:
    """One cell of the map.

    Args:
        role: text of the role.
        depth: 0 for the embeddings, i + 1 after block i, the number of blocks + 1 after the final norm.
        site: hook name.
    """

    role: str
    depth: int
    site: str

    def __str__(self) -> str:
        return f"{self.role} at {self.site}"


@dataclass(frozen=True, eq=False)
class States:
    """What was read: one vector an item and place; the mean over positions where a role names several.

    Args:
        items: those that have every role, in their order.
        values: float32, of each place.
        left_out: text of a default role that no item has -> why.
        dropped: id of an item that was left out on request -> why.
    """

    items: tuple[Item, ...]
    values: Mapping[Place, Float[np.ndarray, "item d_model"]]
    left_out: Mapping[str, str]
    dropped: Mapping[str, str]


def read_states(
    model: PrismModel,
    items: Sequence[Item],
    *,
    layers: Sequence[int] | None = None,
    roles: Sequence[Role] | None = None,
    on_missing: str = "raise",
    progress: bool = False,
) -> States:
    """Run the items, replay them once, and keep a vector for every item, layer and role.

    Args:
        model: the model; its edits apply.
        items: the items.
        layers: blocks whose output is read, all by default; embeddings and the final norm's output are always read.
        roles: by default the question, ``image.box``, every latent, ``latent.end`` and ``answer.source``; of these, the
            ones that no item has are left out and listed. Roles that are given must exist.
        on_missing: for items that lack a role others have: ``"raise"``, or ``"drop"`` to leave them out and list them.

    Raises:
        RoleError: some item lacks a role; SiteError: no such layer; SettingError: `on_missing`, or nothing to read.
    """
    if on_missing not in ON_MISSING:
        raise SettingError(f"on_missing={on_missing!r}", needed=f"one of {', '.join(map(repr, ON_MISSING))}")
    depths = _depths(model.hf.n_layers, layers)
    run = model.generate(items, progress=progress)
    asked, left_out = _present(run, roles)
    dropped: dict[str, str] = {}
    for role in asked:
        if on_missing == "raise":
            resolve(role, run.unrolled)
        for row in role.missing(run.unrolled).nonzero().flatten().tolist():
            dropped.setdefault(run.items[row].id, role.why(run.unrolled, row))
    kept = [item for item in items if item.id not in dropped]
    if not kept:
        raise RoleError(
            f"each of {len(items)} items lacks one of the roles {', '.join(map(str, asked))}",
            needed="items that have all of them",
            fix="choose other roles",
        )
    values = _read(model, run, kept, list(depths), asked)
    places = {(Place(str(role), depths[name], name)): values[role, name] for role in asked for name in depths}
    return States(tuple(kept), places, left_out, dropped)


def _depths(n_layers: int, layers: Sequence[int] | None) -> dict[str, int]:
    """Site -> depth, in forward order."""
    chosen = range(n_layers) if layers is None else sorted(set(layers))
    blocks = {site(get_act_name("resid_post", layer), n_layers).name: layer + 1 for layer in chosen}
    return {EMBEDDING: 0, **blocks, FINAL: n_layers + 1}


def _present(run: Run, roles: Sequence[Role] | None) -> tuple[list[Role], dict[str, str]]:
    """The roles to read, and the default ones that no item has, with the first item's reason."""
    if roles is not None:
        if not roles or len({str(role) for role in roles}) < len(roles):
            raise SettingError(f"roles={list(roles)}", needed="at least one role, none of them twice")
        return list(roles), {}
    steps = int(run.steps_taken.max())
    latents = [latent[step] for step in range(steps)] or [latent]
    wanted = [question, image.box, *latents, latent.end, answer.source]
    absent = [role for role in wanted if bool(role.missing(run.unrolled).all())]
    left_out = {str(role): f"no item has it; {role.why(run.unrolled, 0)}" for role in absent}
    return [role for role in wanted if str(role) not in left_out], left_out


def _read(
    model: PrismModel, run: Run, items: Sequence[Item], names: list[str], roles: Sequence[Role]
) -> dict[tuple[Role, str], Float[np.ndarray, "item d_model"]]:
    """Batch by batch, so that only means are kept: every position of a real model would not fit into memory."""
    union = reduce(lambda a, b: a | b, roles)
    kept: dict[tuple[Role, str], list[Tensor]] = {(role, name): [] for role in roles for name in names}
    for start in range(0, len(items), model.batch_size):
        part = items[start : start + model.batch_size]
        _, cache = model.run_with_cache(part, names, positions=union, run=run, return_type=None)
        for (role, name), parts in kept.items():
            parts.append(_pooled(cache, name, role).cpu())
    return {key: torch.cat(parts).numpy() for key, parts in kept.items()}


def _pooled(cache: ActivationCache, name: str, role: Role) -> Float[Tensor, "batch d_model"]:
    """Each item's mean over the positions of a role, float32."""
    rows, columns = cache.positions.rows, cache.positions.columns
    mine = role.mask(cache.unrolled)[rows, columns]
    own, values = rows[mine], cache.flat(name)[mine].float()
    total = values.new_zeros(len(cache.unrolled.items), values.shape[1]).index_add(0, own, values)
    return total / own.bincount(minlength=len(total))[:, None]
