"""The learning rate at every step: a warm-up and a cosine for each run of phases that share a schedule."""

from __future__ import annotations

import math

from prismlens.training.variants import Variant


def rate(variant: Variant, warm_up: float, step: int) -> float:
    """The factor on the peak learning rate at an optimiser step (0, 1, ...); 0 after the last.

    Phases are joined until one restarts. Within such a stretch of n steps the factor rises linearly over the first
    ``ceil(warm_up * n)`` and then falls as half a cosine; a phase's own ``lr`` multiplies it.
    """
    if step >= variant.steps:
        return 0.0
    phase = variant.phase_at(step)
    starts = [i for i, one in enumerate(variant.phases) if i == 0 or one.restart]
    first = max(i for i in starts if i <= phase)
    after = next((i for i in starts if i > phase), len(variant.phases))
    begin = sum(one.steps for one in variant.phases[:first])
    length = sum(one.steps for one in variant.phases[first:after])
    rising = math.ceil(length * warm_up)
    done = step - begin
    if done < rising:
        return variant.phases[phase].lr * done / rising
    share = (done - rising) / max(length - rising, 1)
    return variant.phases[phase].lr * 0.5 * (1 + math.cos(math.pi * share))
