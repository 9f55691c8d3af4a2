"""`corrupt`: the short way to one edit; knows what the common defaults are and nothing else."""

from __future__ import annotations

from typing import Literal

from prismlens.interventions import Edit, Zero
from prismlens.interventions.operation import Operation, Structural
from prismlens.positions import Role, latent
from prismlens.sites import LATENT
from prismlens.trace.model import PrismModel


def corrupt(
    model: PrismModel,
    *,
    positions: Role = latent,
    op: Operation | Structural | None = None,
    site: str = LATENT,
    mode: Literal["free", "held"] = "free",
    seed: int = 0,
) -> PrismModel:
    """A view of the model with one edit, which is also a context manager; the original is untouched.

    Args:
        model: the model; a view keeps its edits and gains this one.
        positions: where in the sequence.
        op: what to do there; `Zero` by default.
        site: where in the network; the vector that is fed back by default.
        mode: ``"free"`` (later latents are recomputed) or ``"held"`` (they stay as in the clean run).
        seed: of noise and donors.
    """
    return model.edited(Edit(op=op or Zero(), positions=positions, site=site, mode=mode, seed=seed))
