"""One question, one answer: does this model use its latents? Runs the three measurements under one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prismlens.alignment import Alignment, alignment
from prismlens.corruption import MARGIN, CorruptionTest, corruption_test
from prismlens.decodability import Decodability, decodability
from prismlens.errors import DonorError, EditError, ItemError, RoleError, SettingError
from prismlens.experiment import CLEAN
from prismlens.report import Report
from prismlens.trace import PrismModel
from prismlens.types import Item

__all__ = ["Report", "prism"]

N_PERMUTATIONS, N_CONTROLS = 0, 1
"""Shuffles and control tasks of the map inside a report; `decodability` itself makes many more."""
CANNOT_SERVE = (DonorError, ItemError, RoleError, SettingError)
"""What a part raises where the model or the items cannot serve it; the report has its words instead of its numbers."""


def _refuse_unloaded(model: object) -> None:
    """A SettingError where a name or anything else stands for a loaded model."""
    if not isinstance(model, PrismModel):
        given = f"{type(model).__name__} {str(model)[:60]!r}"
        raise SettingError(f"prism of {given}", needed="a loaded model", fix="prism(prismlens.load(...), items)")


def prism(
    model: PrismModel,
    items: Sequence[Item],
    *,
    seed: int = 0,
    margin: float = MARGIN,
    on_missing: str = "drop",
    target: str = "answer",
    layers: Sequence[int] | None = None,
    n_permutations: int = N_PERMUTATIONS,
    n_controls: int = N_CONTROLS,
    progress: bool = False,
) -> Report:
    """Ask a model whether it uses its latents: corruption test, alignment, and map of what probes read.

    The verdict rests on the corruption test alone. What the model or the items cannot serve is not measured, and the
    report says so: without boxes there is no alignment, with too few items of each answer no map.

    Args:
        model: a model with latents.
        items: with options and answers; those that share a scene share a group.
        seed: of noise, donors, folds and intervals, in all parts.
        margin: the change in accuracy that counts as none.
        on_missing: for items that a condition, a role or a comparison cannot be applied to: ``"drop"`` (counted and
            named below the table) or ``"raise"``, which then also raises what a whole part cannot do.
        target: what the probes read; see `decodability`.
        layers: blocks of the map, all by default.
        n_permutations: shuffles of the map; by default none, so that the map in a report has intervals and no p.
        n_controls: control tasks of the map.
        progress: show bars.

    Raises:
        EditError: the model has no latents at all.
    """
    _refuse_unloaded(model)
    if model.hf.config.latent_entry == "none":
        raise EditError(
            f"{model.name} has no latents",
            needed="a model that emits latents",
            cause="it is a control that was trained without them",
            fix="ask another model; generate() runs this one",
        )
    test = corruption_test(model, items, seed=seed, margin=margin, on_missing=on_missing, progress=progress)
    missing: dict[str, str] = {}
    unaligned = {} if on_missing == "raise" else _unaligned(model, items, test)
    near: Alignment | None = None
    map_: Decodability | None = None
    try:
        near = alignment(model, _without(items, unaligned), seed=seed, on_missing=on_missing)
    except CANNOT_SERVE as error:
        missing["alignment"] = _words(error, on_missing)
    try:
        map_ = decodability(
            model, items, target=target, layers=layers, n_permutations=n_permutations, n_controls=n_controls,
            seed=seed, on_missing=on_missing, on_rare=on_missing, progress=progress,
        )  # fmt: skip
    except CANNOT_SERVE as error:
        missing["decodability"] = _words(error, on_missing)
    return Report(test, near, map_, missing, unaligned)


def _without(items: Sequence[Item], left_out: Mapping[str, str]) -> list[Item]:
    """The other items, or an ItemError where there are none."""
    kept = [item for item in items if item.id not in left_out]
    if not kept:
        raise ItemError(
            f"none of {len(items)} items has both a box and the checkpoint's number of latents",
            needed="boxes: the targets of latents are the image tokens inside them",
        )
    return kept


def _unaligned(model: PrismModel, items: Sequence[Item], test: CorruptionTest) -> dict[str, str]:
    """Items whose latents have no targets, or another number of them, and why."""
    rows = test.results.rows
    steps = rows[rows.condition == CLEAN].set_index("item").steps_taken
    wanted = model.settings().latent_steps
    out = {item.id: f"with another number of latents than {wanted}" for item in items if steps[item.id] != wanted}
    return out | {item.id: "without a box" for item in items if not item.boxes}


def _words(error: Exception, on_missing: str) -> str:
    """The error's text on one line; raised instead where nothing may be missing."""
    if on_missing == "raise":
        raise error
    return "; ".join(line.strip() for line in str(error).splitlines())
