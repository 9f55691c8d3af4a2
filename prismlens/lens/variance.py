"""Splits the variance of latents over items and steps into parts that add up; knows no model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SettingError


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the total variance (summed over dimensions); they sum to 1.

    Args:
        total: mean squared distance from the grand mean.
        step: what all items share at a step.
        label: what items of one label share over all steps, beyond the grand mean.
        item: what is an item's own over all steps, beyond its label.
        interaction: the rest: what is particular to an item at a step.
    """

    total: float
    step: float
    label: float
    item: float
    interaction: float


def variance_shares(latents: Float[Tensor, "item step d"], labels: Iterable[Hashable]) -> VarianceShares:
    """Two-way analysis of variance of latents, items by steps, the items' part split by label.

    A high ``step`` share is a block that says the same for every item. With many labels and few items ``label`` is
    large by chance alone, about (labels - 1) / (items - 1) of label and item together.

    Args:
        latents: every item with all steps.
        labels: one an item.

    Raises:
        SettingError: not one label an item, or latents that do not vary at all.
    """
    codes, _ = pd.factorize(pd.Series(list(labels), dtype=object))
    if len(codes) != len(latents) or (codes < 0).any():
        raise SettingError(f"{len(codes)} labels for {len(latents)} items", needed="one an item, none missing")
    x = latents.double()
    x = x - x.mean((0, 1))
    total = float(x.square().sum(-1).mean())
    if not total > 0:
        raise SettingError("the latents do not vary", needed="some variance to split")
    of_step, of_item = x.mean(0), x.mean(1)
    of_label = torch.stack([of_item[torch.as_tensor(codes == code)].mean(0) for code in range(codes.max() + 1)])
    spread = of_label[torch.as_tensor(codes)]
    parts = {
        "step": of_step.square().sum(-1).mean(),
        "label": spread.square().sum(-1).mean(),
        "item": (of_item - spread).square().sum(-1).mean(),
        "interaction": (x - of_step - of_item[:, None]).square().sum(-1).mean(),
    }
    return VarianceShares(total, **{name: float(part) / total for name, part in parts.items()})
