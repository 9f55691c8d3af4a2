"""Turns a word, a folder or a list into checked items; knows nothing of models or grading."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import numpy as np

from prismlens.data.shapes import shapes
from prismlens.data.vstar import load_vstar
from prismlens.errors import ItemError, SettingError
from prismlens.types import Item

Loader: TypeAlias = Callable[[str, int | None, int, str], Sequence[Item]]
"""What follows the prefix, `n`, `seed` and `split` -> items; `n` is None where all are wanted."""

DEFAULT_SHAPES = 200
"""How many rendered items `load_items("shapes")` makes."""


def load_items(
    spec: str | Path | Sequence[Item], *, n: int | None = None, seed: int = 0, split: str = "test"
) -> tuple[Item, ...]:
    """Items with unique ids, each in a group.

    Args:
        spec: ``"shapes"`` (rendered scenes), ``"vstar:DIR"`` (a folder in the V*Bench layout; a `Path` means the same),
            or your own items.
        n: how many. Scenes: that many are rendered, 200 if None. Otherwise a subset, balanced over categories and
            drawn with `seed`, in the original order; a smaller `n` with the same seed gives a subset of a larger one.
        seed: draws scenes, the order of options, and subsets.
        split: the part of the scenes; folders and lists have only ``"test"``.

    An own item without an id becomes ``"item-0007"`` after its place, one without a group its own group.

    Raises:
        ItemError: an unknown spec, an unusable row, a repeated id, or fewer than `n` items.
        SettingError: `n` below 1 or not a whole number, or an unknown split.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral) or n < 1):
        raise SettingError(f"n = {n!r}", needed="a whole number, at least 1, or None for all")
    if isinstance(spec, Path):
        spec = f"vstar:{spec}"
    return _checked(_from_spec(spec, n, seed, split) if isinstance(spec, str) else _own(spec, n, seed, split))


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


def _from_spec(spec: str, n: int | None, seed: int, split: str) -> Sequence[Item]:
    prefix, colon, rest = spec.partition(":")
    name = prefix + colon
    if name in LOADERS and bool(colon) == bool(rest):
        return LOADERS[name](rest, n, seed, split)
    close = [_usage(key) for key in difflib.get_close_matches(name, LOADERS, n=2, cutoff=0.5)]
    raise ItemError(
        f"no items are called {spec!r}",
        needed=f"one of {', '.join(map(_usage, LOADERS))}, or a list of items",
        cause="a folder without its prefix" if Path(spec).exists() else "a misspelt name, or a folder left out",
        fix=f"did you mean {' or '.join(close)}?" if close else "write for example 'shapes'",
    )


def _usage(key: str) -> str:
    """How to write the spec of a loader."""
    return f"'{key}DIR'" if key.endswith(":") else f"'{key}'"


def _load_shapes(_: str, n: int | None, seed: int, split: str) -> Sequence[Item]:
    return shapes(DEFAULT_SHAPES if n is None else n, split=split, seed=seed)


def _load_folder(folder: str, n: int | None, seed: int, split: str) -> Sequence[Item]:
    _only_test(split, f"the folder {folder}")
    return _subset(load_vstar(folder, seed=seed), n, seed, f"the folder {folder}")


LOADERS: Mapping[str, Loader] = {"shapes": _load_shapes, "vstar:": _load_folder}
"""How a spec begins -> its loader; a colon means that a folder follows. A new source is one more entry."""


def _own(items: Iterable[Item], n: int | None, seed: int, split: str) -> Sequence[Item]:
    """The caller's items with ids and groups filled in."""
    _only_test(split, "the list of items")
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
    return _subset(grouped, n, seed, "the list of items")


def _only_test(split: str, source: str) -> None:
    if split != "test":
        raise SettingError(
            f"split {split!r} of {source}",
            needed="'test'",
            cause="only rendered scenes have splits",
            fix="leave it out",
        )


def _subset(items: Sequence[Item], n: int | None, seed: int, source: str) -> Sequence[Item]:
    """`n` items in their order: categories take turns, each giving its items in a seeded random order."""
    if n is None:
        return items
    if n > len(items):
        raise ItemError(
            f"n = {n}, and {source} holds {len(items)} items",
            needed=f"n from 1 to {len(items)}",
            fix="lower `n`, or leave it out for all",
        )
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[item.category].append(place)
    turns: list[tuple[int, int, int]] = []
    for index, category in enumerate(sorted(places)):
        order = np.random.default_rng([seed, index]).permutation(places[category])
        turns += [(turn, index, int(place)) for turn, place in enumerate(order)]
    return [items[place] for place in sorted(place for _, _, place in sorted(turns)[:n])]


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
