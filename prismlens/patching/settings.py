"""How a patching sweep runs, and the refusal of what cannot run; knows no sequences and no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismlens.errors import EditError, ItemError, SettingError
from prismlens.patching.cells import SWEEPS, Sweep
from prismlens.patching.metric import Metric, check_metric
from prismlens.positions import Role
from prismlens.trace import PrismModel
from prismlens.trace.checked import checked_items
from prismlens.types import Item

MIN_GAP = 0.5
"""Pairs whose clean and corrupted metric are closer than this (nats, for the named metrics) are left out."""
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("held", "free"),
    "direction": ("denoising", "noising"),
    "method": ("exact", "attribution", "both"),
}


@dataclass(frozen=True)
class Settings:
    """How a sweep runs; see `patching_sweep`."""

    metric: Metric
    positions: Role | Sequence[Role] | None
    mode: str
    direction: str
    method: str
    min_gap: float


def checked_sweep(
    model: PrismModel, clean: Sequence[Item], corrupted: Sequence[Item], name: str, settings: Settings
) -> Sweep:
    """The sweep of that name, after everything that needs no forward was checked."""
    checked_items(clean)
    checked_items(corrupted)
    if len(clean) != len(corrupted):
        raise ItemError(f"{len(clean)} clean and {len(corrupted)} corrupted items", needed="one for one, in one order")
    for what, allowed in CHOICES.items():
        if getattr(settings, what) not in allowed:
            raise SettingError(f"{what} = {getattr(settings, what)!r}", needed=f"one of {', '.join(allowed)}")
    if name not in SWEEPS:
        raise SettingError(f"no sweep is called {name!r}", needed=f"one of {', '.join(SWEEPS)}")
    if settings.mode == "free" and settings.method != "exact":
        raise SettingError(
            f'method={settings.method!r} in mode="free"', needed='"exact"', cause="no gradient passes the chosen tokens"
        )
    if not settings.min_gap > 0:
        raise SettingError(f"min_gap = {settings.min_gap}", needed="a number above 0: it divides")
    check_metric(settings.metric)
    if model.active_edits:
        raise EditError(f"a model with {len(model.active_edits)} edits", needed="none", fix="use model.clean()")
    if not SWEEPS[name].by_pos and not (settings.positions is None or isinstance(settings.positions, Role)):
        raise SettingError(f"several positions for {name}", needed="one role, or None for all positions together")
    return SWEEPS[name]
