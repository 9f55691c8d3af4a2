"""Conditions times seeds: what runs once for every item; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prismlens.errors import EditError, SettingError
from prismlens.interventions import (
    Constant,
    DeleteKV,
    Edit,
    Identity,
    Mean,
    Noise,
    Oracle,
    Patch,
    Scale,
    Structural,
    Swap,
    Transplant,
    Zero,
)

CLEAN = "clean"
"""The name of the condition without edits."""
DRAWS_NOTHING = (Identity, Mean, Oracle, Scale, Structural, Zero)
"""Operations that do the same under every seed; any other is taken to draw something."""


def draws(edit: Edit) -> bool:
    """Whether an edit does something else under another seed."""
    alone = isinstance(edit.op, Swap) and edit.op.donor == "self"
    return not (alone or isinstance(edit.op, DRAWS_NOTHING))


REPLACES = (Constant, Mean, Oracle, Patch, Transplant, Zero)
"""Operations that put in something else, whatever was there; so does pure noise, unless it takes the value's norm."""


@dataclass(frozen=True)
class Variant:
    """One condition under one seed.

    Args:
        condition: its name.
        seed: of its noise and donors; None where it draws nothing, or where its edits have seeds of their own.
        edits: applied in order.
    """

    condition: str
    seed: int | None
    edits: tuple[Edit, ...]


def variants(conditions: Mapping[str, Sequence[Edit]], seeds: Sequence[int] | None) -> tuple[Variant, ...]:
    """Every condition, once for each seed if it draws anything; in the order of conditions, then of seeds.

    Args:
        conditions: name -> edits.
        seeds: take the place of the edits' own. None: each edit keeps its own.

    Raises:
        EditError: a condition is called ``"clean"``, has no edits, swaps twice, has an edit that another undoes, or
            has edits of several seeds that `seeds` would make one.
        SettingError: `seeds` is empty or repeats itself.
    """
    _check_conditions(conditions)
    if seeds is not None and (not len(seeds) or len(set(seeds)) < len(seeds)):
        raise SettingError(f"seeds={list(seeds)}", needed="different whole numbers, at least one, or None")
    return tuple(one for name, edits in conditions.items() for one in _seeded(name, tuple(edits), seeds))


def _seeded(name: str, edits: tuple[Edit, ...], seeds: Sequence[int] | None) -> list[Variant]:
    """One condition's variants."""
    drawn = sorted({edit.seed for edit in edits if draws(edit)})
    if seeds is None or not drawn:
        return [Variant(name, drawn[0] if len(drawn) == 1 else None, edits)]
    if len(drawn) > 1:
        raise EditError(
            f"the condition {name!r} has edits of the seeds {', '.join(map(str, drawn))}, and seeds={list(seeds)}",
            needed="edits of one seed where `seeds` takes its place",
            cause="two draws that were meant to differ would become the same",
            fix="leave `seeds` out and write one condition for each seed",
        )
    return [Variant(name, seed, tuple(replace(edit, seed=seed) for edit in edits)) for seed in seeds]


def _check_conditions(conditions: Mapping[str, Sequence[Edit]]) -> None:
    """Refuse conditions that say nothing or contradict themselves, and those whose rows could not name one donor."""
    if not isinstance(conditions, Mapping) or not conditions:
        raise EditError(
            f"conditions={conditions!r}" if not isinstance(conditions, Mapping) else "no conditions were given",
            needed="a mapping of at least one name to its edits",
            cause="pairs were given, in which a name could stand twice" if conditions else "",
            fix='write {"zero": [Edit(Zero())]}',
        )
    for name, edits in conditions.items():
        if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
            raise EditError(
                f"the condition {name!r} is {edits!r}",
                needed="a sequence of edits",
                cause="a bare edit or an operation was given",
                fix="write [Edit(Zero())]",
            )
        if name == CLEAN or not str(name).strip() or not edits:
            raise EditError(
                f"a condition {name!r} with {len(edits)} edits", needed=f"a name other than {CLEAN!r}, and edits"
            )
        swaps = [edit for edit in edits if isinstance(edit.op, Swap)]
        if len(swaps) > 1:
            raise EditError(
                f"the condition {name!r} swaps {len(swaps)} times", needed="one donor an item", fix="use one Swap"
            )
        _refuse_void(name, edits)


def _refuse_void(name: str, edits: Sequence[Edit]) -> None:
    """An EditError where an edit is undone by a later one, or acts on what another deletes: it would do nothing."""
    for number, first in enumerate(edits):
        for later in edits[number + 1 :]:
            same = (first.positions, first.site, first.mode) == (later.positions, later.site, later.mode)
            values = not isinstance(first.op, Structural | Identity)
            if same and values and overwrites(later):
                raise EditError(
                    f"the condition {name!r}: {first} is overwritten by {later}",
                    needed="edits of which each does something",
                    cause="the later operation does not look at the value that it replaces",
                    fix="leave the first out, or make two conditions",
                )
        gone = [one for one in edits if isinstance(one.op, DeleteKV) and one.positions == first.positions]
        if gone and first.site == "kv":
            raise EditError(
                f"the condition {name!r}: {first} changes keys and values that {gone[0]} deletes",
                needed="edits of which each does something",
                fix="leave one of them out",
            )


def overwrites(edit: Edit) -> bool:
    """Whether an edit's result does not depend on the value that it replaces."""
    return isinstance(edit.op, REPLACES) or (isinstance(edit.op, Noise) and edit.op.pure and edit.op.unit != "norm")
