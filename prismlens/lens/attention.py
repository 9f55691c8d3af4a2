"""How much attention some positions pay to others, head by head, and how it is spread over the image; no cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import prismlens.stats as stats
from prismlens.cache import ActivationCache
from prismlens.errors import RoleError, SettingError, SiteError
from prismlens.positions import Role, answer, image, latent, resolve
from prismlens.trace import PrismModel, Run
from prismlens.types import Item

PATTERN = "blocks.{layer}.attn.hook_pattern"


def attention_mass(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
) -> Float[Tensor, "batch head"]:
    """Attention that the queries pay to all the keys together: summed over keys, averaged over queries; 0 to 1.

    Raises:
        RoleError: a row has no query. A row without keys gets 0: nothing can be paid to it.
    """
    count = queries.sum(1)
    if bool((count == 0).any()):
        raise RoleError(f"row {int((count == 0).nonzero()[0])} has no query", needed="at least one in every row")
    paid = torch.einsum("bhqk,bk->bhq", pattern, keys.to(pattern))
    return torch.einsum("bhq,bq->bh", paid, queries.to(pattern)) / count[:, None]


def enrichment(
    inside: Float[Tensor, "batch head"], whole: Float[Tensor, "batch head"], area: Float[Tensor, " batch"]
) -> Float[Tensor, "batch head"]:
    """How many times more attention a part of the image gets than its share of the image: 1 is no preference.

    Args:
        inside: mass on the part.
        whole: mass on the whole image.
        area: share of the image's tokens in the part.

    Returns:
        NaN where the image gets no attention at all, or the part is empty.
    """
    return inside / whole / area[:, None]


@dataclass(frozen=True, eq=False)
class AttentionMass:
    """One row an item, layer and head.

    Args:
        rows: ``item, group, layer, head, mass``; ``enrichment`` over the image where the keys are ``image.box``.
    """

    rows: pd.DataFrame

    def frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One line a layer and head: means over items, with intervals by bootstrap over groups.

        Columns ``layer, head, n, mass, low, high``, and where there is an enrichment ``enrichment, enrichment_low,
        enrichment_high`` and ``n_enrichment`` (items whose image got any attention).
        """
        lines = []
        for (layer, head), rows in self.rows.groupby(["layer", "head"], sort=True):  # type: ignore[misc]
            mass = stats.cluster_mean_interval(rows.mass.to_numpy(), rows.group, seed=seed)
            line = {
                "layer": layer, "head": head, "n": len(rows), "mass": mass.estimate, "low": mass.low, "high": mass.high
            }  # fmt: skip
            if "enrichment" in rows:
                some = rows[rows.enrichment.notna()]
                line |= {"n_enrichment": len(some)}
                if some.group.nunique() >= 2:
                    rich = stats.cluster_mean_interval(some.enrichment.to_numpy(), some.group, seed=seed)
                    line |= {
                        "enrichment": rich.estimate, "enrichment_low": rich.low, "enrichment_high": rich.high
                    }  # fmt: skip
            lines.append(line)
        return pd.DataFrame(lines)


def attention(
    model: PrismModel,
    items: Sequence[Item],
    *,
    by: Role = answer.source,
    to: Role = latent,
    layers: Sequence[int] | None = None,
    run: Run | None = None,
) -> AttentionMass:
    """Attention of one role to another in a replay of finished sequences, at every layer and head.

    ``to=image.box`` also gets the enrichment over the box's share of the image: ``by=latent, to=image.box`` asks
    whether latents look where the answer is.

    Args:
        model: the model; its edits apply.
        items: the items.
        by: who looks.
        to: what is looked at.
        layers: all by default.
        run: a finished run of these items under the same edits.

    Raises:
        RoleError: an item lacks one of the roles; SiteError: no such layer, or the model serves no attention patterns.
    """
    chosen = list(range(model.hf.n_layers) if layers is None else sorted(set(layers)))
    if not chosen:
        raise SettingError("layers is empty", needed="at least one layer")
    run = model.generate(items) if run is None else run.take(items)
    parts = []
    for start in range(0, len(items), model.batch_size):
        part = items[start : start + model.batch_size]
        names = {layer: PATTERN.format(layer=layer) for layer in chosen}
        _, cache = model.run_with_cache(part, list(names.values()), positions=by, run=run, return_type=None)
        resolve(to, cache.unrolled)
        for layer, name in names.items():
            parts.append(_rows(part, layer, *_masses(cache, name, to)))
    return AttentionMass(pd.concat(parts, ignore_index=True))


def _masses(cache: ActivationCache, name: str, to: Role) -> tuple[Tensor, Tensor | None]:
    """Mass on the role, ``[batch, head]``, and its enrichment over the image where the role is the box."""
    values, rows, unrolled = cache.flat(name), cache.where(name).rows, cache.unrolled
    if values.shape[-1] != unrolled.shape[1]:
        raise SiteError(
            f"{name} has {values.shape[-1]} keys", needed=f"one for each of the {unrolled.shape[1]} columns"
        )
    owners = torch.arange(len(unrolled.items), device=rows.device)[:, None] == rows
    pattern = values.permute(1, 0, 2).expand(len(owners), -1, -1, -1)

    def mass(role: Role) -> Tensor:
        return attention_mass(pattern, owners, role.mask(unrolled))

    if to != image.box:
        return mass(to), None
    area = image.box.mask(unrolled).sum(1) / image.mask(unrolled).sum(1)
    return mass(to), enrichment(mass(to), mass(image), area)


def _rows(items: Sequence[Item], layer: int, mass: Tensor, rich: Tensor | None) -> pd.DataFrame:
    """One row an item and head."""
    heads = mass.shape[1]
    frame = pd.DataFrame(
        {
            "item": [item.id for item in items for _ in range(heads)],
            "group": [item.group for item in items for _ in range(heads)],
            "layer": layer, "head": list(range(heads)) * len(items), "mass": mass.flatten().tolist(),
        }
    )  # fmt: skip
    return frame if rich is None else frame.assign(enrichment=rich.flatten().tolist())
