"""The value that names positions, and how roles combine and are indexed; knows no particular role."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prismlens.errors import RoleError
from prismlens.unrolled import Unrolled

SliceKey: TypeAlias = tuple[int | None, int | None, int | None]
"""The start, stop and step of a slice (slices themselves cannot be hashed before Python 3.12)."""

ATOM = 10
"""Binds tighter than every operator: a name, an index, an attribute."""


class Role(ABC):
    """Names positions of an unrolled item; frozen, hashable, and independent of any batch until it is resolved.

    Roles combine: ``a | b`` (either), ``a & b`` (both), ``a - b`` (a without b), ``~a`` (every other position that is
    not padding). ``role[i]`` and ``role[i:j]`` pick by order within each row, and for ``latent`` by latent step;
    negative numbers count from the row's own end and slices clip as Python's do. ``str(role)`` is what a user would
    write, and `parse` reads it back.
    """

    precedence: ClassVar[int] = ATOM
    __iter__ = None
    __contains__ = None

    @abstractmethod
    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """True at the positions that the role names; all False in a row where it names none."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that a user would write for this role."""

    def __repr__(self) -> str:
        return str(self)

    def __bool__(self) -> bool:
        raise RoleError(
            f"the role {self} was used as true or false",
            needed="a role combined with |, &, - or ~",
            cause="`and`, `or` or `not` between roles",
            fix="write `a | b`, `a & b` or `~a`; test with `is None`",
        )

    def __or__(self, other: Role) -> Role:
        return _combined("|", self, other)

    def __and__(self, other: Role) -> Role:
        return _combined("&", self, other)

    def __sub__(self, other: Role) -> Role:
        return _combined("-", self, other)

    def __invert__(self) -> Role:
        return Complement(self)

    def __getitem__(self, key: int | slice) -> Role:
        return Index(self, _checked_key(self, key))

    def order(self, unrolled: Unrolled) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """What an index counts: each position's number within its row (-1 off the role), and how many there are."""
        mask = self.mask(unrolled)
        return torch.where(mask, mask.long().cumsum(1) - 1, -1), mask.sum(1)

    def missing(self, unrolled: Unrolled) -> Bool[Tensor, " batch"]:
        """True for the rows in which the role, or a part that it needs, names no position."""
        return ~self.mask(unrolled).any(1)

    def why(self, unrolled: Unrolled, row: int) -> str:
        """One clause that says why the role is missing in a row."""
        return f"{self}: no such position"


@dataclass(frozen=True, repr=False)
class Operator:
    """How one operator binds, and what it does to two masks."""

    precedence: int
    merge: Callable[[Tensor, Tensor], Tensor]
    needs_right: bool
    """Whether the right part has to exist: what is only taken away may be absent."""


OPERATORS = {
    "|": Operator(1, torch.logical_or, True),
    "&": Operator(2, torch.logical_and, True),
    "-": Operator(3, lambda left, right: left & ~right, False),
}
"""Python's own order: ``-`` binds tighter than ``&``, and ``&`` tighter than ``|``."""


@dataclass(frozen=True, repr=False)
class Combined(Role):
    """Two roles joined by one of `OPERATORS`. Both parts of ``|`` and ``&`` must exist in a row."""

    symbol: str
    left: Role
    right: Role

    @property
    def precedence(self) -> int:  # type: ignore[override]
        """How tightly the operator binds."""
        return OPERATORS[self.symbol].precedence

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """The two masks, merged."""
        return OPERATORS[self.symbol].merge(self.left.mask(unrolled), self.right.mask(unrolled))

    def missing(self, unrolled: Unrolled) -> Bool[Tensor, " batch"]:
        """Rows with an empty result, or without a part that the operator needs."""
        absent = super().missing(unrolled) | self.left.missing(unrolled)
        return absent | self.right.missing(unrolled) if OPERATORS[self.symbol].needs_right else absent

    def why(self, unrolled: Unrolled, row: int) -> str:
        """The reason of the part that is missing."""
        parts = (self.left, self.right) if OPERATORS[self.symbol].needs_right else (self.left,)
        for part in parts:
            if part.missing(unrolled)[row]:
                return part.why(unrolled, row)
        return f"{self}: nothing is left"

    def __str__(self) -> str:
        left = _wrapped(self.left, self.precedence)
        return f"{left} {self.symbol} {_wrapped(self.right, self.precedence + 1)}"


@dataclass(frozen=True, repr=False)
class Complement(Role):
    """Every position that is neither padding nor in the role."""

    role: Role
    precedence: ClassVar[int] = 4

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """The valid positions outside the role's mask."""
        return unrolled.valid & ~self.role.mask(unrolled)

    def __invert__(self) -> Role:
        return self.role

    def __str__(self) -> str:
        return f"~{_wrapped(self.role, self.precedence)}"


@dataclass(frozen=True, repr=False)
class Index(Role):
    """Some of a role's positions, by number within each row."""

    role: Role
    key: int | SliceKey

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """True where the position's number is one of the chosen ones of its row."""
        number, count = self.role.order(unrolled)
        width = max(1, int(number.max()) + 1 if number.numel() else 1, int(count.max()) if count.numel() else 1)
        chosen = torch.zeros(len(count), width, dtype=torch.bool)
        for row, n in enumerate(count.tolist()):
            chosen[row, _chosen(self.key, n)] = True
        return (number >= 0) & chosen.to(number.device).gather(1, number.clamp(min=0))

    def missing(self, unrolled: Unrolled) -> Bool[Tensor, " batch"]:
        """Rows where the index is out of range, or where the role itself is missing."""
        return super().missing(unrolled) | self.role.missing(unrolled)

    def why(self, unrolled: Unrolled, row: int) -> str:
        """How many positions there are to index, or why the role itself is missing."""
        if self.role.missing(unrolled)[row]:
            return self.role.why(unrolled, row)
        return f"{self}: {self.role} has {int(self.role.order(unrolled)[1][row])} here"

    def __str__(self) -> str:
        return f"{_wrapped(self.role, ATOM)}[{_key_text(self.key)}]"


def _combined(symbol: str, left: Role, right: object) -> Role:
    """The combination, or NotImplemented where the right side is not a role (Python then raises TypeError)."""
    return Combined(symbol, left, right) if isinstance(right, Role) else NotImplemented


def _wrapped(role: Role, precedence: int) -> str:
    """The role's text, in parentheses where it binds less tightly than its surroundings."""
    return str(role) if role.precedence >= precedence else f"({role})"


def _checked_key(role: Role, key: object) -> int | SliceKey:
    """The index as a number or a triple, or a RoleError that says what an index may be."""
    parts = (key.start, key.stop, key.step) if isinstance(key, slice) else (key,)
    try:
        if any(isinstance(part, bool) for part in parts) or key is None:
            raise TypeError
        numbers = tuple(None if part is None else operator.index(part) for part in parts)  # type: ignore[arg-type]
        if numbers[2:] == (0,):
            raise TypeError
    except TypeError:
        raise RoleError(
            f"the role {role} was indexed with {key!r}",
            needed="a whole number or a slice with a step other than 0",
            fix=f"write for example {role}[0], {role}[-1] or {role}[1:3]; join single ones with |",
        ) from None
    return numbers if isinstance(key, slice) else numbers[0]  # type: ignore[return-value]


def _chosen(key: int | SliceKey, n: int) -> list[int]:
    """The numbers in ``0..n - 1`` that a key picks, none where it is out of range."""
    if isinstance(key, tuple):
        return list(range(n)[slice(*key)])
    return [key % n] if -n <= key < n else []


def _key_text(key: int | SliceKey) -> str:
    """``-1`` or ``1:3``, as it stands between the brackets."""
    if isinstance(key, int):
        return str(key)
    start, stop, step = ("" if part is None else str(part) for part in key)
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
