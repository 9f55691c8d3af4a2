"""What clean values of a site are like: means and spreads over steps, stages or all; knows no model and no edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.placed import Placed
from prismlens.positions.places import OUTSIDE, Place, named

GROUPS: Mapping[str, Callable[[Place], Place]] = {
    "all": lambda place: (0, 0),
    "stage": lambda place: (place[0], 0),
    "step": lambda place: (OUTSIDE, 0) if place[0] == OUTSIDE else place,
}
"""Which places are pooled, by the names of `context.OVER`."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and standard deviation of each group of places.

    Args:
        over: what a group is (`context.OVER`).
        means: by group, per dimension; of groups with at least two values.
        stds: likewise, with n - 1 in the denominator.
    """

    over: str
    means: Mapping[Place, Float[Tensor, "*d"]]
    stds: Mapping[Place, Float[Tensor, "*d"]]

    @classmethod
    def of(cls, clean: Placed, over: str, along: Float[np.ndarray, " d"] | None = None) -> Statistics:
        """Measured over all items.

        Args:
            clean: values of clean runs.
            over: what is pooled.
            along: a unit vector; the statistics are then those of the lengths along it, single numbers.
        """
        values = clean.values
        if along is not None:
            if len(along) != values.shape[1]:
                raise EditError(
                    f"a direction of {len(along)} numbers at a site of {values.shape[1]}",
                    needed="a direction that was measured at this site",
                )
            values = values.double() @ torch.from_numpy(along).to(values.device)
        members: dict[Place, list[int]] = {}
        for by_place in clean.rows.values():
            for place, row in by_place.items():
                members.setdefault(GROUPS[over](place), []).append(row)
        several = {key: values[rows] for key, rows in members.items() if len(rows) > 1}
        means = {key: group.mean(0) for key, group in several.items()}
        return cls(over, means, {key: group.std(0) for key, group in several.items()})

    def mean(self, at: Sequence[Place]) -> Tensor:
        """The mean of each place's group, ``[n, d]``, or ``[n]`` along a direction."""
        return torch.stack([self.means[key] for key in self._keys(at)])

    def std(self, at: Sequence[Place]) -> Tensor:
        """The standard deviation of each place's group, ``[n, d]``, or ``[n]`` along a direction."""
        return torch.stack([self.stds[key] for key in self._keys(at)])

    def _keys(self, at: Sequence[Place]) -> list[Place]:
        """The group of each place, or an EditError where one has fewer than two values."""
        keys = [GROUPS[self.over](place) for place in at]
        lacking = [place for place, key in zip(at, keys, strict=True) if key not in self.stds]
        if lacking:
            raise EditError(
                f"the clean runs hold fewer than two values over {self.over!r} for {named(lacking[0])}",
                needed="at least two: of one, the mean is the item's own value and the spread nothing",
                cause="a single item was run, or the role names other steps in clean runs than here",
                fix="run more items, or pass reference= a clean run of more",
            )
        return keys
