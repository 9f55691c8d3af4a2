"""Runs the conditions of a corruption test on a model; the statistics are `CorruptionTest`'s."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from prismlens.corruption.conditions import default_conditions, default_controls
from prismlens.corruption.result import MARGIN, CorruptionTest
from prismlens.errors import EditError
from prismlens.experiment import run_conditions
from prismlens.interventions import Edit
from prismlens.trace import PrismModel
from prismlens.types import Item


def corruption_test(
    model: PrismModel,
    items: Sequence[Item],
    *,
    conditions: Mapping[str, Sequence[Edit]] | None = None,
    controls: Mapping[str, Sequence[Edit]] | None = None,
    margin: float = MARGIN,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    on_missing: str = "raise",
    progress: bool = False,
) -> CorruptionTest:
    """Break the latents in several ways and compare with the clean run, item by item.

    Args:
        model: the model.
        items: with options and answers; those that share a scene share a group.
        conditions: name -> edits; `default_conditions` when not given.
        controls: name -> edits that stand beside them, outside the verdict and outside the correction for many tests;
            `default_controls` where neither is given, none beside conditions of your own.
        margin: what counts as no effect, in accuracy.
        seed: of noise, donors and bootstrap.
        seeds: run every condition that draws noise or donors once under each of these, instead of under `seed`; the
            statistics then take seeds for a sample, as items are (see `stats.crossed_mean`).
        on_missing: for items that a condition cannot be applied to, see `run_conditions`.
        progress: show a bar.

    Warns:
        UserWarning: a control that must be bit-equal to the clean run is not; the verdict is then undecided.

    Raises:
        DonorError: an item has no possible donor.
        EditError: a control has the name of a condition.
    """
    if controls is None:
        controls = default_controls(seed, model.settings().latent_steps) if conditions is None else {}
    chosen = default_conditions(seed) if conditions is None else conditions
    twice = sorted(set(chosen) & set(controls))
    if twice:
        raise EditError(
            f"{', '.join(map(repr, twice))} among the conditions and among the controls",
            needed="a name of its own for each",
            fix="rename the control",
        )
    results = run_conditions(
        model, items, {**chosen, **controls}, on_missing=on_missing, seeds=seeds, progress=progress
    )
    test = CorruptionTest(results, margin, seed, tuple(controls))
    for name, count in test.broken_controls.items():
        warnings.warn(
            f"the control {name!r} is not bit-equal to the clean run on {count} rows, and must be: the edits of this "
            "run cannot be trusted. Kernels that are not deterministic do this, and so do two batch plans in one run",
            stacklevel=2,
        )
    return test
