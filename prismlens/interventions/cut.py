"""The structural operation that hides some positions from some others; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from prismlens.errors import EditError
from prismlens.interventions.operation import Structural
from prismlens.positions import Role


@dataclass(frozen=True)
class Cut(Structural):
    """The positions ``by`` cannot attend to the positions ``to``.

    Question: does what sits at ``to`` reach ``by`` directly? ``Cut(to=image, by=answer)`` closes the way round the
    latents; ``Cut(to=latent, by=answer)`` the way through them.

    Args:
        to: the positions that are no longer seen (keys and values).
        by: the positions that no longer see them (queries).
        layers: the layers where this holds, ascending; None for all.
        heads: the query heads for which it holds there, ascending; None for all.
    """

    to: Role
    by: Role
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, role in (("to", self.to), ("by", self.by)):
            if not isinstance(role, Role):
                raise EditError(
                    f"Cut({name}={role!r})",
                    needed="a role",
                    cause="the role's text was given for the role",
                    fix="write prismlens.latent, or positions.parse(text)",
                )
        for name, numbers in (("layers", self.layers), ("heads", self.heads)):
            if numbers is not None:
                object.__setattr__(self, name, _checked(name, numbers))


def _checked(name: str, numbers: object) -> tuple[int, ...]:
    """The layers or heads in ascending order, or an EditError."""
    given = tuple(numbers) if isinstance(numbers, tuple | list | range) else ()
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in given)
    if not given or not whole or len(set(given)) != len(given):
        raise EditError(
            f"Cut({name}={numbers!r})",
            needed=f"different {name}, each a whole number of at least 0, or None for all",
            fix=f"write for example {name}=(0, 1)",
        )
    return tuple(sorted(given))
