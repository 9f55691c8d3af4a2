"""The operation that takes a subspace away, or leaves nothing else; knows only its subspace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, one_of, same_width
from prismlens.interventions.values import Numbers, Values, frozen

KEEPS = ("rest", "subspace")


@dataclass(frozen=True)
class Project(Operation):
    """Project the value away from a subspace, or onto it.

    Question: is what a probe reads off this subspace needed (``"rest"``), or enough (``"subspace"``)? A random subspace
    of the same rank is the control.

    The projection is orthogonal and about the origin: with an orthonormal basis Q, ``x - x Q'Q`` or ``x Q'Q``.

    Args:
        basis: ``[rank, d]``, rows that span the subspace: any lengths, independent of each other. One direction is
            ``vector[None]``.
        keep: ``"rest"`` to project away from the subspace, ``"subspace"`` to project onto it.
    """

    basis: Numbers
    keep: str = "rest"

    def __post_init__(self) -> None:
        basis = Values.of("Project(basis)", self.basis, 2)
        object.__setattr__(self, "basis", basis)
        one_of("keep", self.keep, KEEPS)
        rank = int(np.linalg.matrix_rank(basis.array()))
        if rank < basis.shape[0]:
            raise EditError(
                f"Project with {basis.shape[0]} rows of rank {rank}",
                needed="rows that are independent of each other",
                cause="a row is 0 or a sum of others, or there are more rows than dimensions",
                fix="leave rows out, for example with scipy.linalg.orth(basis.T).T",
            )

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The projection, computed in at least float32."""
        basis = frozen(self.basis)
        same_width(self, basis.shape[1], value)
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        inside = torch.zeros_like(exact)
        for axis in torch.from_numpy(np.linalg.qr(basis.array().T)[0].T.copy()).to(exact):
            # No matrix product: its last bits depend on how many rows there are.
            inside += (exact * axis).sum(-1, keepdim=True) * axis
        return (inside if self.keep == "subspace" else exact - inside).to(value.dtype)
