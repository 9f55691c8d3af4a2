"""Runs a model and measures how close its latents come to their targets; the tables are `Alignment`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from prismlens.alignment.lengths import lengths
from prismlens.alignment.result import FORCED, FREE, TARGET, Alignment
from prismlens.alignment.rows import Block, geometry_lines, measure_rows
from prismlens.errors import RoleError
from prismlens.interventions import Edit, Oracle, Swap, match_donors
from prismlens.positions import latent
from prismlens.trace import PrismModel, Run
from prismlens.types import Item


def alignment(model: PrismModel, items: Sequence[Item], *, seed: int = 0, on_missing: str = "raise") -> Alignment:
    """Measure the alignment of the latents, as the model emits them (free) and as training saw them (teacher-forced).

    Teacher-forced, every latent before is replaced by its target, and the state that would become the next is compared
    with the next target: what the field reports. Free is what the model does when it is used.

    Args:
        model: a model with latents.
        items: with boxes and answers.
        seed: of the choice of other items, of the halves that centring takes its means from, and of the intervals.
        on_missing: for items without another item of a different image and answer: ``"raise"`` or ``"drop"``.

    Raises:
        ItemError: some items have no box.
        DonorError: some item has no other item to compare with.
        RoleError: the model emitted no latents for some item, or another number than the checkpoint's.
    """
    others = match_donors(items, Swap(donor="different-answer"), seed=seed, on_missing=on_missing)
    kept = [item for item in items if item.id in others]
    steps = model.settings().latent_steps
    features = model.image_features(items, steps)
    run = model.generate(kept)
    _refuse_uneven(run, steps)
    states = _states(model, kept, run)
    names = [stage.name for stage in model.settings().stages_of(model.hf.config) for _ in range(stage.steps)]
    block = Block(items, features, kept, others, names, seed)
    vectors = {**states, TARGET: block.targets[block.own]}
    return Alignment(
        pd.DataFrame([row for mode, values in states.items() for row in measure_rows(block, mode, values)]),
        others.dropped,
        seed,
        pd.DataFrame([line for mode, values in vectors.items() for line in geometry_lines(block, mode, values)]),
        pd.DataFrame(lengths(model, run, block, vectors)),
    )


def _states(model: PrismModel, items: Sequence[Item], run: Run) -> Mapping[str, Float[Tensor, "item step d_model"]]:
    """What would become the latents, by mode."""
    forced = model.edited(Edit(Oracle(), mode="held"))
    states: dict[str, Tensor] = {}
    for mode, asked in ((FREE, model), (FORCED, forced)):
        _, cache = asked.run_with_cache(items, model.latent_site, positions=latent.source, run=run)
        states[mode] = cache[model.latent_site]
    return states


def _refuse_uneven(run: Run, steps: int) -> None:
    """A RoleError where an item's latents and its targets differ in number; none at all is `latent.source`'s to say."""
    uneven = [item.id for item, n in zip(run.items, run.steps_taken.tolist(), strict=True) if n not in (0, steps)]
    if uneven:
        raise RoleError(
            f"{len(uneven)} of {len(run.items)} items have more or fewer than {steps} latents: "
            f"{', '.join(map(repr, uneven[:5]))}",
            needed="one latent for each target",
            cause="the model itself decides when a block ends, or entered a second one",
            fix="leave these items out, or load the model with a fixed number of steps",
        )
