"""The published corruption conditions as edits; runs nothing, and mends nothing about them."""

from __future__ import annotations

from prismlens.interventions.edit import Edit
from prismlens.interventions.noise import Noise
from prismlens.interventions.swap import Swap
from prismlens.interventions.zero import Zero

SIGMAS = (0.1, 0.3, 1.0)
POOL = 64


def paper_conditions(seed: int = 0) -> dict[str, tuple[Edit, ...]]:
    """Condition -> edits: all latents, at the vector that is fed back, free running.

    Zeros; standard normal noise times .1, .3 and 1, in raw units, one vector an item and step; and the clean latent of
    the same stage and step of a donor out of 64 items. As published, the donor may be of any category, have the same
    answer, or be the item itself. Unlike there, a donor without that stage or step is an error: nothing turns into
    noise, and steps are not clamped.

    Args:
        seed: of noise and donors.
    """
    noise = {f"noise {sigma:g} raw": (Edit(Noise(sigma, unit="raw"), seed=seed),) for sigma in SIGMAS}
    swap = Edit(Swap(donor="anyone", image="any", pool=POOL), seed=seed)
    return {"zero": (Edit(Zero(), seed=seed),), **noise, "swap": (swap,)}
