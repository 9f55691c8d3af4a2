"""What a fitted probe hands out: linear scores of raw vectors, and single directions; knows no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SettingError


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the space of raw activations, pointing from one class (or from all others) to another.

    Args:
        vector: along it the score of `to` rises against that of `against`.
        to: the class that it points to.
        against: the class that it points away from, None for the mean of all others.
    """

    vector: Float[np.ndarray, " d"]
    to: Any
    against: Any = None

    @property
    def unit(self) -> Float[np.ndarray, " d"]:
        """The vector divided by its length; zero where it is zero."""
        length = float(np.linalg.norm(self.vector))
        return self.vector / length if length else self.vector

    def tensor(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, " d"]:
        """The unit vector as a tensor."""
        return torch.from_numpy(self.unit).to(dtype)


@dataclass(frozen=True, eq=False)
class LinearReadout:
    """Scores ``x @ directions.T + offsets`` of raw, un-standardised vectors.

    Args:
        classes: the labels, in the order of the scores.
        directions: one a class.
        offsets: one a class.
    """

    classes: tuple[Any, ...]
    directions: Float[np.ndarray, "class d"]
    offsets: Float[np.ndarray, " class"]

    def scores(self, x: Float[np.ndarray, "item d"]) -> Float[np.ndarray, "item class"]:
        """The score of every class; the highest is predicted."""
        return x @ self.directions.T + self.offsets

    def predict(self, x: Float[np.ndarray, "item d"]) -> list[Any]:
        """The class with the highest score of each row."""
        return [self.classes[code] for code in self.scores(x).argmax(1)]

    def direction(self, to: Any, against: Any = None) -> Direction:
        """The direction that tells one class from another, or from the mean of all others.

        Raises:
            SettingError: the readout has no such class.
        """
        rows = np.arange(len(self.classes))
        others = rows[rows != self._row(to)] if against is None else np.array([self._row(against)])
        return Direction(self.directions[self._row(to)] - self.directions[others].mean(0), to, against)

    def _row(self, name: Any) -> int:
        if name not in self.classes:
            raise SettingError(f"the class {name!r}", needed=f"one of {', '.join(map(repr, self.classes))}")
        return self.classes.index(name)
