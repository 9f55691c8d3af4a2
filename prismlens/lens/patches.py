"""Which image patches a latent resembles most, and whether they lie in the item's box; says nothing about use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import prismlens.stats as stats
from prismlens.errors import SettingError
from prismlens.positions import image, latent
from prismlens.sites import get_act_name
from prismlens.trace import PrismModel, Run
from prismlens.types import Item


@dataclass(frozen=True, eq=False)
class NearestPatches:
    """One row an item, latent step and rank.

    Args:
        rows: ``item, group, step, rank`` (0 is the nearest), ``patch_row, patch_column`` (in the merged grid),
            ``cosine``, ``in_box`` (None where the item has no box), ``area`` (share of the image's tokens inside the
            box: what a patch drawn at random would reach; NaN without box).
        without_box: ids of the items that have no box, and say nothing about boxes.
    """

    rows: pd.DataFrame
    without_box: tuple[str, ...] = ()

    def frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One line a step: how often the named patches lie in the box, and how much more often than at random.

        Columns ``step, n`` (items with a box), ``cosine, in_box, area``, ``excess, low, high`` (in_box minus area,
        bootstrap over groups) and ``enrichment`` (in_box over area).

        Raises:
            SettingError: no item has a box.
        """
        known = self.rows[self.rows.in_box.notna()]
        if not len(known):
            raise SettingError(f"none of {self.rows['item'].nunique()} items has a box", needed="items with boxes")
        lines = []
        for step, rows in known.groupby("step", sort=True):
            own: Any = rows.assign(hit=rows.in_box.astype(float)).groupby("item", sort=False)
            mean: Any = own[["cosine", "hit", "area"]].mean().join(own["group"].first())
            interval = stats.cluster_mean_interval((mean.hit - mean.area).to_numpy(), mean.group, seed=seed)
            lines.append(
                {
                    "step": step, "n": len(mean), "cosine": mean.cosine.mean(), "in_box": mean.hit.mean(),
                    "area": mean.area.mean(), "excess": interval.estimate, "low": interval.low, "high": interval.high,
                    "enrichment": mean.hit.mean() / mean.area.mean(),
                }
            )  # fmt: skip
        return pd.DataFrame(lines)


def nearest_patches(
    model: PrismModel, items: Sequence[Item], *, top: int = 1, run: Run | None = None
) -> NearestPatches:
    """For each latent the image tokens of its own item with the highest cosine, before the first block.

    There latents are as they were fed and image tokens as the merger gave them, which is what latents are taught to
    resemble.

    Args:
        model: the model; its edits apply.
        items: the items.
        top: how many patches to name.
        run: a finished run of these items under the same edits.

    Raises:
        RoleError: an item without latents or image; SettingError: an image with fewer than `top` tokens.
    """
    run = model.generate(items) if run is None else run.take(items)
    name, lines = get_act_name("resid_pre", 0), []
    for start in range(0, len(items), model.batch_size):
        part = items[start : start + model.batch_size]
        _, cache = model.run_with_cache(part, [name], positions=latent | image, run=run, return_type=None)
        rows, columns, values = cache.positions.rows, cache.positions.columns, cache.flat(name)
        unrolled = cache.unrolled
        fed, patch = latent.mask(unrolled)[rows, columns], image.mask(unrolled)[rows, columns]
        boxed = image.box.mask(unrolled)
        for row, item in enumerate(part):
            mine = rows == row
            at = columns[mine & patch]
            places, inside = unrolled.patches[row, at].tolist(), boxed[row, at].tolist()
            if not 1 <= top <= len(places):
                raise SettingError(f"top={top}", needed=f"1 to {len(places)}: so many tokens has {item.id!r}")
            similar = cosines(values[mine & fed], values[mine & patch])
            steps = unrolled.steps[row, columns[mine & fed]].tolist()
            lines += _lines(item, steps, similar, places, inside, top)
    return NearestPatches(pd.DataFrame(lines), tuple(item.id for item in items if not item.boxes))


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosine of every pair, in float32."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def _lines(
    item: Item, steps: list[int], similar: Tensor, places: list[list[int]], inside: list[bool], top: int
) -> list[dict[str, Any]]:
    """One line a latent and rank."""
    best = similar.topk(top, dim=-1)
    area = sum(inside) / len(inside) if item.boxes else float("nan")
    return [
        {
            "item": item.id, "group": item.group, "step": step, "rank": rank, "patch_row": places[index][0],
            "patch_column": places[index][1], "cosine": float(best.values[n, rank]),
            "in_box": inside[index] if item.boxes else None, "area": area,
        }
        for n, step in enumerate(steps)
        for rank, index in enumerate(best.indices[n].tolist())
    ]  # fmt: skip
