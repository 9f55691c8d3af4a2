"""How a probe is fitted and judged, as data: penalties, folds, grouping; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prismlens.errors import SettingError


@dataclass(frozen=True)
class Protocol:
    """Settings of the logistic probe.

    Args:
        name: how users ask for it.
        strengths: values of C, ascending; of several, each training set chooses its own by cross-validation inside it.
        folds: of the cross-validation.
        grouped: whether items of one group stay in one fold.
    """

    name: str
    strengths: tuple[float, ...]
    folds: int = 5
    grouped: bool = True

    def __post_init__(self) -> None:
        least = 3 if len(self.strengths) > 1 else 2
        if self.folds < least:
            raise SettingError(f"folds = {self.folds}", needed=f"at least {least}")
        if not self.strengths or min(self.strengths) <= 0 or list(self.strengths) != sorted(set(self.strengths)):
            raise SettingError(f"strengths = {self.strengths}", needed="positive values of C, ascending")


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "paper": Protocol("paper", (1.0,), grouped=False),
        "fair": Protocol("fair", (1e-4, 1e-3, 1e-2, 1e-1)),
    }
)
"""``"paper"``: C = 1, z-scores inside the fold, plain stratified 5-fold, as published; the fit is the exact minimum,
which L-BFGS at its usual tolerance may miss. ``"fair"``: groups never straddle a split, and C is chosen; standardised
rows are about as long as the square root of their width, so at C = 1 the penalty hardly binds; the grid lies below."""


def protocol_of(asked: str | Protocol) -> Protocol:
    """The protocol itself, or the one of that name."""
    if isinstance(asked, Protocol):
        return asked
    if asked not in PROTOCOLS:
        raise SettingError(f"protocol={asked!r}", needed=f"one of {', '.join(map(repr, PROTOCOLS))}, or a Protocol")
    return PROTOCOLS[asked]
