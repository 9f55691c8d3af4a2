"""What clean runs look like at a site: mean, spread and every item's own values; the yardstick that edits need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.errors import DonorError


@dataclass(frozen=True, eq=False)
class Reference:
    """Clean values at one site and role.

    Args:
        mean, std: per dimension, over all items and selected positions.
        values: item id -> its values, one row a selected position, in order.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    values: Mapping[str, Float[Tensor, "pos d"]]

    @classmethod
    def of(cls, cache: ActivationCache, name: str) -> Reference:
        """Measured from a cache of clean runs."""
        flat, rows = cache.flat(name), cache.where(name).rows
        by_row = {item.id: flat[rows == row] for row, item in enumerate(cache.unrolled.items)}
        std = flat.std(0) if len(flat) > 1 else torch.zeros_like(flat[0])
        return cls(flat.mean(0), std, by_row)

    def donor(self, item_id: str, donor_id: str, ordinal: int) -> Float[Tensor, " d"]:
        """The donor's value at the same place in the order of the role's positions."""
        values = self.values[donor_id]
        if ordinal >= len(values):
            raise DonorError(
                f"donor {donor_id!r} of item {item_id!r} has {len(values)} positions of this role",
                needed=f"number {ordinal} too",
                cause="the two items have different numbers of such positions",
                fix="swap at latents of a fixed budget, or choose a single position such as question[-1]",
            )
        return values[ordinal]
