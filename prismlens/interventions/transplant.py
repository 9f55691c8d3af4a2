"""What operations share that put a value of a clean run in the place of another; knows no runs and no places."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, present


class Transplant(Operation):
    """An operation whose replacement is a clean value of another place; `order` says of which.

    The places of an item are those that the edit's role names in its clean run: the latents of each stage are ordered
    among themselves, and so are the positions that are not latents.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"donors"})

    @abstractmethod
    def order(self, n: int, key: str) -> tuple[int, ...]:
        """For each of n places the number of the one whose value it gets; `key` seeds what is drawn.

        Raises:
            EditError: with so few places the operation would change nothing.
        """

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The values of the other places."""
        return present(context.donors).to(value, copy=True)


def seeded(key: str) -> torch.Generator:
    """A generator that is the same for a text in every process (Python's own hash is not)."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big"))
