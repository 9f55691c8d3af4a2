"""Turns a word, a folder or a list into checked items; knows nothing of models or grading."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from prismlens.data.blink import read_blink
from prismlens.data.mmvp import load_mmvp
from prismlens.data.rows import check_on_bad
from prismlens.data.shapes import shapes
from prismlens.data.viscot import read_viscot
from prismlens.data.vstar import load_vstar
from prismlens.errors import ItemError, SettingError
from prismlens.types import Item


@dataclass(frozen=True)
class Wanted:
    """What `load_items` was asked for, besides the source; `n` is None where all items are wanted."""

    n: int | None
    seed: int
    split: str
    on_bad: str


Loader: TypeAlias = Callable[[str, Wanted], Sequence[Item]]
"""What follows the prefix, and what is wanted -> items."""

DEFAULT_SHAPES = 200
"""How many rendered items `load_items("shapes")` makes."""


def load_items(
    spec: str | Path | Sequence[Item],
    *,
    n: int | None = None,
    seed: int = 0,
    split: str = "test",
    on_bad: str = "raise",
) -> tuple[Item, ...]:
    """Items with unique ids, each in a group.

    Args:
        spec: ``"shapes"`` (rendered scenes), ``"vstar:DIR"`` (a folder in the V*Bench layout; a `Path` means the same),
            ``"mmvp:DIR"`` and ``"blink:DIR"`` (those benchmarks' folders, for BLINK also that of one subtask),
            ``"viscot:FILE"`` (Visual-CoT rows in the form of LVR, as open questions; `read_viscot` also reads what a
            model should write), or your own items.
        n: how many. Scenes: that many are rendered, 200 if None. Otherwise a subset, balanced over categories and
            drawn with `seed`, in the original order; a smaller `n` with the same seed gives a subset of a larger one.
        seed: draws scenes, the order of options, and subsets.
        split: the part of the scenes; folders, files and lists have only ``"test"``.
        on_bad: ``"raise"``, or ``"drop"`` to go on without the rows of BLINK or Visual-CoT that cannot be used, with a
            warning that counts them.

    An own item without an id becomes ``"item-0007"`` after its place, one without a group its own group.

    Raises:
        ItemError: an unknown spec, an unusable row, a repeated id, or fewer than `n` items.
        SettingError: `n` below 1 or not a whole number, an unknown split or `on_bad`, or ``on_bad="drop"`` of a source
            whose faults are never dropped.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral) or n < 1):
        raise SettingError(f"n = {n!r}", needed="a whole number, at least 1, or None for all")
    if isinstance(spec, Path):
        spec = f"vstar:{spec}"
    check_on_bad(on_bad)
    wanted = Wanted(n, seed, split, on_bad)
    return _checked(_from_spec(spec, wanted) if isinstance(spec, str) else _own(spec, wanted))


def require_letters(items: Iterable[Item]) -> None:
    """Every item can be graded by letter.

    Raises:
        ItemError: some items lack options or an answer; the message names the first five of them.
    """
    lacking = {
        "no options": [item.id for item in items if not item.options],
        "no answer": [item.id for item in items if item.options and item.answer is None],
    }
    found = [f"{len(ids)} with {what} ({_some(ids)})" for what, ids in lacking.items() if ids]
    if found:
        raise ItemError(
            f"items that cannot be graded by letter: {'; '.join(found)}",
            needed="options, and the letter of the right one, on every item",
            cause="open questions, or a test set without its answers",
            fix="give `options=` and `answer=`, or leave these items out",
        )


def _from_spec(spec: str, wanted: Wanted) -> Sequence[Item]:
    prefix, colon, rest = spec.partition(":")
    name = prefix + colon
    if name in SOURCES and bool(colon) == bool(rest):
        return SOURCES[name].load(rest, wanted)
    close = [_usage(key) for key in difflib.get_close_matches(name, SOURCES, n=2, cutoff=0.5)]
    raise ItemError(
        f"no items are called {spec!r}",
        needed=f"one of {', '.join(map(_usage, SOURCES))}, or a list of items",
        cause="a path without its prefix" if Path(spec).exists() else "a misspelt name, or a path left out",
        fix=f"did you mean {' or '.join(close)}?" if close else "write for example 'shapes'",
    )


def _usage(key: str) -> str:
    """How to write the spec of a source."""
    return f"'{key}{SOURCES[key].follows}'"


def _load_shapes(_: str, wanted: Wanted) -> Sequence[Item]:
    _never_dropped(wanted, "rendered scenes")
    return shapes(DEFAULT_SHAPES if wanted.n is None else wanted.n, split=wanted.split, seed=wanted.seed)


def _load_vstar(folder: str, wanted: Wanted) -> Sequence[Item]:
    source = f"the folder {folder}"
    _only_test(wanted, source)
    _never_dropped(wanted, source)
    return _subset(load_vstar(folder, seed=wanted.seed), wanted, source)


def _load_mmvp(folder: str, wanted: Wanted) -> Sequence[Item]:
    source = f"the folder {folder}"
    _only_test(wanted, source)
    _never_dropped(wanted, source)
    return _subset(load_mmvp(folder), wanted, source)


def _load_blink(folder: str, wanted: Wanted) -> Sequence[Item]:
    source = f"the folder {folder}"
    _only_test(wanted, source)
    found = read_blink(folder, on_bad=wanted.on_bad)
    _warn_of(found.bad, len(found.items), source)
    return _subset(found.items, wanted, source)


def _load_viscot(file: str, wanted: Wanted) -> Sequence[Item]:
    source = f"the file {file}"
    _only_test(wanted, source)
    rows = read_viscot(file, on_bad=wanted.on_bad)
    _warn_of(rows.bad, len(rows), source)
    return [rows[place].item for place in _places(rows.categories, wanted, source)]


@dataclass(frozen=True)
class Source:
    """Where items come from: how they are loaded, and what follows the name and a colon in a spec."""

    load: Loader
    follows: str = ""


SOURCES: Mapping[str, Source] = {
    "shapes": Source(_load_shapes),
    "vstar:": Source(_load_vstar, "DIR"),
    "mmvp:": Source(_load_mmvp, "DIR"),
    "blink:": Source(_load_blink, "DIR"),
    "viscot:": Source(_load_viscot, "FILE"),
}
"""How a spec begins -> the source; a colon means that a path follows. A new source is one more entry."""


def _own(items: Iterable[Item], wanted: Wanted) -> Sequence[Item]:
    """The caller's items with ids and groups filled in."""
    _only_test(wanted, "the list of items")
    _never_dropped(wanted, "the list of items")
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise ItemError(
            f"a {type(items).__name__} was given as items",
            needed="a spec such as 'shapes', a folder, or a list of Item",
            fix="put a single item in a list" if isinstance(items, Item) else "build `Item`s from it",
        )
    items = list(items)
    for place, item in enumerate(items):
        if not isinstance(item, Item):
            raise ItemError(
                f"element {place} of the list is a {type(item).__name__}",
                needed="an Item",
                fix="build it with `Item(image=..., question=...)`",
            )
    named = [item if item.id else replace(item, id=f"item-{place:04d}") for place, item in enumerate(items)]
    grouped = [item if item.group else replace(item, group=item.id) for item in named]
    _unique(grouped)
    return _subset(grouped, wanted, "the list of items")


def _only_test(wanted: Wanted, source: str) -> None:
    if wanted.split != "test":
        raise SettingError(
            f"split {wanted.split!r} of {source}",
            needed="'test'",
            cause="only rendered scenes have splits",
            fix="leave it out",
        )


def _never_dropped(wanted: Wanted, source: str) -> None:
    if wanted.on_bad != "raise":
        raise SettingError(
            f"on_bad = {wanted.on_bad!r} of {source}",
            needed="'raise'",
            cause="only rows of BLINK and Visual-CoT can be dropped",
            fix="leave it out",
        )


def _warn_of(bad: pd.DataFrame, usable: int, source: str) -> None:
    """Dropped rows are said aloud, since the items that remain do not show them."""
    if len(bad):
        text = f"{len(bad)} of {len(bad) + usable} rows of {source} were dropped; the first: {bad['reason'].iloc[0]}"
        warnings.warn(text, stacklevel=5)  # the caller of load_items


def _subset(items: Sequence[Item], wanted: Wanted, source: str) -> Sequence[Item]:
    """The wanted number of items in their order, balanced over categories."""
    return [items[place] for place in _places([item.category for item in items], wanted, source)]


def _places(categories: Sequence[str], wanted: Wanted, source: str) -> Sequence[int]:
    """`n` places in their order: categories take turns, each giving its places in a seeded random order."""
    n, count = wanted.n, len(categories)
    if n is None:
        return range(count)
    if n > count:
        raise ItemError(
            f"n = {n}, and {source} holds {count} items",
            needed=f"n from 1 to {count}",
            fix="lower `n`, or leave it out for all",
        )
    places: dict[str, list[int]] = defaultdict(list)
    for place, category in enumerate(categories):
        places[category].append(place)
    turns: list[tuple[int, int, int]] = []
    for index, category in enumerate(sorted(places)):
        order = np.random.default_rng([wanted.seed, index]).permutation(places[category])
        turns += [(turn, index, int(place)) for turn, place in enumerate(order)]
    return sorted(place for _, _, place in sorted(turns)[:n])


def _checked(items: Sequence[Item]) -> tuple[Item, ...]:
    if not items:
        raise ItemError("the list of items is empty", needed="at least one item", fix="check how the list was made")
    _unique(items)
    return tuple(items)


def _unique(items: Sequence[Item]) -> None:
    repeated = [item_id for item_id, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise ItemError(
            f"{len(repeated)} ids occur more than once: {_some(repeated)}",
            needed="a unique id on every item",
            cause="one list was joined to itself, or a given id is one that is filled in for items without an id",
            fix="rename them, or leave every id empty",
        )


def _some(ids: Sequence[str]) -> str:
    """The first five ids, and a sign that there are more."""
    return ", ".join(repr(item_id) for item_id in ids[:5]) + (", ..." if len(ids) > 5 else "")
