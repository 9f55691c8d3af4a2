"""The two kinds of operation: a pure function of one tensor, and a change to who can read what; knows no operation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import Context


class Operation(ABC):
    """A pure function from the selected values to their replacements; frozen, hashable, and the same in any batch.

    ``needs`` names what the `Context` must hold: some of ``"std"``, ``"mean"``, ``"spread"``, ``"donors"``,
    ``"source"``, ``"targets"``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The replacement for each selected value, of the same shape, dtype and device; ``value`` stays as it was.

        Raises:
            EditError: the context lacks something that the operation needs, or does not fit the value.
        """
        self._check(value, context)
        return self.replace(value, context)

    @abstractmethod
    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The replacement, given a context that has been checked. Call the operation itself instead."""

    def _check(self, value: Float[Tensor, "n d"], context: Context) -> None:
        """Raise an EditError where the context lacks something, or has other shapes than the value."""
        absent = sorted(name for name in self.needs if getattr(context, name) is None)
        if absent:
            raise EditError(
                f"{self} was called without {', '.join(absent)}",
                needed=f"a context with {', '.join(sorted(self.needs))}",
                cause="the site was not measured on clean runs, or no donors or targets were looked up",
                fix=f"pass Context({', '.join(f'{name}=...' for name in absent)})",
            )
        n, d = value.shape
        one, each, number = {(d,), (n, d)}, {(n, d)}, {(n,)}
        shapes = {"std": one, "mean": one, "spread": number, "donors": each, "source": each, "targets": each}
        wrong = [name for name in sorted(self.needs) if tuple(getattr(context, name).shape) not in shapes[name]]
        if len(context.item_ids) != n:
            raise EditError(
                f"{self} was given {n} values and {len(context.item_ids)} item ids",
                needed="one id for each selected pair of item and position",
                fix="build the context from the selection",
            )
        if wrong:
            given = ", ".join(f"{name} {tuple(getattr(context, name).shape)}" for name in wrong)
            raise EditError(
                f"{self} was given values of shape {(n, d)} with {given}",
                needed=", ".join(f"{name} {' or '.join(map(str, sorted(shapes[name], key=len)))}" for name in wrong),
                cause="they were measured at another site, or for another selection",
                fix="measure them at this site",
            )


class Structural:
    """A change to which positions can read which; it has no tensor to change, the model's own code carries it out."""

    needs: ClassVar[frozenset[str]] = frozenset()


def finite(name: str, value: object, minimum: float = -math.inf) -> float:
    """The value as a float, or an EditError where it is not a finite number of at least ``minimum``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < minimum:  # type: ignore[arg-type, operator]
        bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise EditError(f"{name}={value!r}", needed=f"a finite number{bound}", fix=f"give {name} as a plain number")
    return float(value)  # type: ignore[arg-type]


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """An EditError where the value is not one of the choices."""
    if value not in choices:
        raise EditError(f"{name}={value!r}", needed=f"one of {', '.join(map(repr, choices))}")


def same_width(op: Operation, width: int, value: Float[Tensor, "n d"]) -> None:
    """An EditError where the numbers in an operation are not as wide as the value."""
    if value.shape[1] != width:
        raise EditError(
            f"{op} holds vectors of {width} numbers, and the site has {value.shape[1]}",
            needed=f"vectors of {value.shape[1]} numbers",
            cause="they were measured at another site, or on another model",
            fix="measure them at this site",
        )


def present(value: Tensor | None) -> Tensor:
    """A context value that ``needs`` names, and that has therefore been checked to be there."""
    assert value is not None
    return value
