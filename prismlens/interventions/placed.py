"""Values of a finished run at one site, by item and place; knows not how they were read, or what for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.errors import DonorError
from prismlens.positions.places import Place, named, places
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, eq=False)
class Placed:
    """One row a place of an item.

    Args:
        values: all of them.
        rows: item id -> place -> row of `values`, places in order.
    """

    values: Float[Tensor, "n d"]
    rows: Mapping[str, Mapping[Place, int]]

    @classmethod
    def of(cls, cache: ActivationCache, name: str) -> Placed:
        """Read off a cache; heads side by side where the site has several."""
        where = cache.where(name)
        return cls._at(cache.unrolled, where.rows, where.columns, cache.flat(name).flatten(1))

    @classmethod
    def latents(cls, run: Unrolled) -> Placed:
        """The vectors that a finished run fed back, before any edit of them."""
        rows, columns = (run.steps >= 0).nonzero(as_tuple=True)
        return cls._at(run, rows, columns, run.latents[rows, run.steps[rows, columns]])

    @classmethod
    def _at(cls, run: Unrolled, rows: Tensor, columns: Tensor, values: Tensor) -> Placed:
        mask = torch.zeros_like(run.valid)
        mask[rows, columns] = True
        found = places(run, mask)[rows, columns].tolist()
        by_item: dict[str, dict[Place, int]] = {item.id: {} for item in run.items}
        for number, (row, (group, step)) in enumerate(zip(rows.tolist(), found, strict=True)):
            by_item[run.items[row].id][group, step] = number
        return cls(values, by_item)

    def take(self, wanted: Sequence[tuple[str, str, Place]]) -> Float[Tensor, "n d"]:
        """The value of each donor at each place, given as (item, donor, place); a donor may be the item itself.

        Raises:
            DonorError: there is no such donor, or it has no such place.
        """
        lacking = [one for one in wanted if one[2] not in self.rows.get(one[1], {})]
        if lacking:
            item, donor, place = lacking[0]
            whose = "it has" if donor in self.rows else "there is"
            raise DonorError(
                f"item {item!r} is to get values of {donor!r}, and {whose} nothing that matches {named(place)}"
                + (f"; {len({one[0] for one in lacking})} items lack some" if len(lacking) > 1 else ""),
                needed="the same stage and step, or as many positions of the role, in the run that values come from",
                cause="that run has other items or fewer such positions, or the role names other steps in it",
                fix="take values at latents of a fixed budget, or choose a single position such as question[-1]",
            )
        return self.values[[self.rows[donor][place] for _, donor, place in wanted]]

    def neighbours(self, item_id: str, place: Place) -> list[Place]:
        """The item's own places in the group of a place, in order."""
        return [one for one in self.rows.get(item_id, {}) if one[0] == place[0]]
