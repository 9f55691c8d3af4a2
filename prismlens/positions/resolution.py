"""Turns a role into rows and columns of one batch, or says which items lack it; knows no particular role."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from prismlens.errors import RoleError
from prismlens.positions.role import Role
from prismlens.unrolled import Unrolled

ABSENT = ("raise", "drop")
SHOWN = 8
"""How many items an error lists before it only counts the rest."""


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions that a role names in one batch, sorted by row and then by column.

    Args:
        rows: row of each position.
        columns: column of each position.
        dropped: ids of the items that lack the role and were left out on request.
    """

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


def resolve(role: Role, unrolled: Unrolled, absent: str = "raise") -> Positions:
    """The rows and columns that a role names.

    Every part of a union or an intersection has to exist in a row; what a difference takes away may be absent.

    Args:
        role: for example ``latent[-1] | answer.source``.
        unrolled: the batch.
        absent: ``"raise"``, or ``"drop"`` to leave out the items without the role and list them in ``dropped``.

    Raises:
        RoleError: some item lacks the role (empty, out of range), with each item's id and the reason.
    """
    if not isinstance(role, Role):
        raise RoleError(
            f"positions were given as {role!r}",
            needed="a role",
            cause="the role's text was given for the role",
            fix="write prismlens.latent, or positions.parse(text)",
        )
    if absent not in ABSENT:
        raise RoleError(f"absent={absent!r}", needed=f"one of {', '.join(map(repr, ABSENT))}")
    missing = role.missing(unrolled)
    lacking = missing.nonzero().flatten().tolist()
    if lacking and absent == "raise":
        raise _absent(role, unrolled, lacking)
    rows, columns = (role.mask(unrolled) & ~missing[:, None]).nonzero(as_tuple=True)
    return Positions(rows, columns, tuple(unrolled.items[row].id for row in lacking))


def _absent(role: Role, unrolled: Unrolled, lacking: list[int]) -> RoleError:
    """The error that names the items without the role, each with its reason."""
    reasons = [f"{unrolled.items[row].id!r} ({role.why(unrolled, row)})" for row in lacking[:SHOWN]]
    rest = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    return RoleError(
        f"the role {role} is absent in {len(lacking)} of {len(unrolled.items)} items: {', '.join(reasons)}{rest}",
        needed="at least one position in every item",
        cause="these items ended early, or never had such positions",
        fix='choose another role, leave these items out, or resolve with absent="drop"',
    )
