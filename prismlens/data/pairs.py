"""Minimal pairs: two items that differ in one attribute of one object, with the same question; knows nothing of models.

    pairs = load_pairs("shapes", n=100, kind="relevant")
    pairs.clean, pairs.corrupted        # aligned items; pairs[0].boxes says which object changed

A pair is a function of ``(seed, split, index)``: a smaller `n` is a prefix of a larger one, and both kinds of one seed
have the same clean items, so that they can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TypeVar, overload

import numpy as np

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import RELATIONS, SPLITS, Scene, Thing, relation, sample_scene
from prismlens.errors import ItemError, SettingError
from prismlens.types import LETTERS, Box, Item

KINDS = ("relevant", "elsewhere")
"""``"relevant"``: an object that the question names changes, and with it the answer. ``"elsewhere"``: the same
attribute of an object that the question does not name, and the answer stays."""
ATTRIBUTES = ("color", "position", "shape")
"""What changes, and what the question asks about; pairs take them in turn."""
DEFAULT_PAIRS = 100
"""How many pairs `load_pairs` makes."""

_NAMES = {"color": tuple(COLORS), "shape": SHAPES}
_CATEGORY = {"color": "direct_attributes", "shape": "direct_attributes", "position": "relative_position"}
_LETTER_PAIRS = [(a, b) for a in range(4) for b in range(4) if a != b]
"""Places of the clean and the corrupted answer among four options."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two items with the same question and options, whose images differ in one attribute of one object.

    Args:
        clean: the item as drawn.
        corrupted: the item after the change; its answer differs where `kind` is ``"relevant"``.
        kind: one of `KINDS`.
        attribute: one of `ATTRIBUTES`.
        boxes: the changed object in the clean and in the corrupted image, normalised xyxy; equal unless it moved.
            Outside of them the images are equal, pixel for pixel.
    """

    clean: Item
    corrupted: Item
    kind: str
    attribute: str
    boxes: tuple[Box, Box]


@dataclass(frozen=True, eq=False)
class Pairs(Sequence[Pair]):
    """Pairs in order, with the items of either side as aligned tuples."""

    pairs: tuple[Pair, ...]

    @property
    def clean(self) -> tuple[Item, ...]:
        """The clean items."""
        return tuple(pair.clean for pair in self.pairs)

    @property
    def corrupted(self) -> tuple[Item, ...]:
        """The corrupted items, in the same order."""
        return tuple(pair.corrupted for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, key: int) -> Pair: ...

    @overload
    def __getitem__(self, key: slice) -> Pairs: ...

    def __getitem__(self, key: int | slice) -> Pair | Pairs:
        """One pair, or some of them."""
        return Pairs(self.pairs[key]) if isinstance(key, slice) else self.pairs[key]

    def only(self, attribute: str) -> Pairs:
        """The pairs in which that attribute changes.

        Raises:
            SettingError: it is none of `ATTRIBUTES`.
        """
        if attribute not in ATTRIBUTES:
            raise SettingError(f"attribute {attribute!r}", needed=f"one of {', '.join(ATTRIBUTES)}")
        return Pairs(tuple(pair for pair in self.pairs if pair.attribute == attribute))


def load_pairs(
    spec: str = "shapes", n: int = DEFAULT_PAIRS, seed: int = 0, *, kind: str = "relevant", split: str = "test"
) -> Pairs:
    """`n` minimal pairs on freshly rendered scenes, one to a scene, the attributes taking turns.

    The clean and the corrupted scene both belong to the split. Over every 36 pairs each attribute has each ordered pair
    of (clean, corrupted) answer letters of a relevant change once.

    Args:
        spec: ``"shapes"``, the only source that can draw a scene again with one change.
        n: how many.
        seed: draws scenes, questions and changes.
        kind: one of `KINDS`.
        split: the part of the scenes.

    Returns:
        Items with ids ``"pair-test-0-00007"`` and ``"pair-test-0-00007-relevant"``. Both sides of a pair share a group,
        and have `meta` with ``kind``, ``content`` and ``scene`` (what is shown, as text).

    Raises:
        ItemError: another source.
        SettingError: an unknown kind or split, or `n` or `seed` out of range.
    """
    _check(spec, n, seed, kind, split)
    return Pairs(tuple(_pair(index, int(seed), kind, split) for index in range(n)))


@dataclass(frozen=True)
class _Change:
    """A question about a scene, and one of its objects before and after a change."""

    before: Thing
    after: Thing
    asked: tuple[Thing, ...]
    """The objects that the question names, as they are after the change."""


def _pair(index: int, seed: int, kind: str, split: str) -> Pair:
    """Pair number `index`. Both kinds are drawn, so that the clean side does not depend on which one is wanted."""
    attribute = ATTRIBUTES[index % len(ATTRIBUTES)]
    rng = np.random.default_rng([seed, list(SPLITS).index(split), 0, index])
    scene, asked, changes = _sample(rng, split, attribute)
    old, new = _content(asked, attribute), _content(changes["relevant"].asked, attribute)
    options, letters = _options(rng, attribute, old, new, _letters(index, seed, split))
    chosen = changes[kind]
    changed = _with(scene, chosen.before, chosen.after)
    name = f"pair-{split}-{seed}-{index:05d}"
    text = _question(asked, attribute)

    def item(shown: Scene, things: tuple[Thing, ...], item_id: str) -> Item:
        content = _content(things, attribute)
        return Item(
            image=shown.render(), question=text, options=options, answer=letters[content], id=item_id,
            boxes=tuple(shown.box(thing) for thing in things), group=scene.signature, category=_CATEGORY[attribute],
            meta={"kind": _KIND[attribute], "content": content, "scene": shown.signature},
        )  # fmt: skip

    clean, corrupted = item(scene, asked, name), item(changed, chosen.asked, f"{name}-{kind}")
    return Pair(clean, corrupted, kind, attribute, (scene.box(chosen.before), changed.box(chosen.after)))


_KIND = {"color": "color", "shape": "shape", "position": "relation"}
"""The kind of question, as in `prismlens.data.shapes`."""


def _sample(
    rng: np.random.Generator, split: str, attribute: str
) -> tuple[Scene, tuple[Thing, ...], dict[str, _Change]]:
    """A scene of the split, the objects that a question names, and a change of either kind that stays in the split."""
    while True:
        scene = sample_scene(rng, split)
        asked = _pick(rng, _askable(scene, attribute))
        found = {kind: list(_changes(scene, asked, attribute, kind)) for kind in KINDS}
        if all(found.values()):
            # The new answer first, then how it comes about: of several moves to the left, none counts for more.
            new = _pick(rng, sorted({_content(change.asked, attribute) for change in found["relevant"]}))
            found["relevant"] = [one for one in found["relevant"] if _content(one.asked, attribute) == new]
            return scene, asked, {kind: _pick(rng, some) for kind, some in found.items()}


def _askable(scene: Scene, attribute: str) -> list[tuple[Thing, ...]]:
    """What a question may name: any object, or any ordered two in one row or column."""
    if attribute != "position":
        return [(thing,) for thing in scene.things]
    return [(a, b) for a in scene.things for b in scene.things if relation(a, b) is not None]


def _changes(scene: Scene, asked: tuple[Thing, ...], attribute: str, kind: str) -> Iterator[_Change]:
    """Every change of one object's attribute that gives another scene of the same split."""
    old = _content(asked, attribute)
    things = asked if kind == "relevant" else tuple(thing for thing in scene.things if thing not in asked)
    for before in things:
        for after in _variants(scene, before, attribute):
            now = tuple(after if thing == before else thing for thing in asked)
            moved_apart = attribute == "position" and relation(*now) is None
            if moved_apart or (_content(now, attribute) != old) != (kind == "relevant"):
                continue
            if _with(scene, before, after).split == scene.split:
                yield _Change(before, after, now)


def _variants(scene: Scene, thing: Thing, attribute: str) -> Iterator[Thing]:
    """The object with another colour or shape that no other has, or in a cell that is free."""
    if attribute != "position":
        taken = {getattr(other, attribute) for other in scene.things}
        yield from (replace(thing, **{attribute: name}) for name in _NAMES[attribute] if name not in taken)
        return
    cells = {(other.column, other.row) for other in scene.things}
    for row in range(scene.rows):
        for column in range(scene.columns):
            if (column, row) not in cells:
                yield replace(thing, column=column, row=row)


def _with(scene: Scene, before: Thing, after: Thing) -> Scene:
    """The scene with one object replaced."""
    return replace(scene, things=tuple(after if thing == before else thing for thing in scene.things))


def _content(asked: tuple[Thing, ...], attribute: str) -> str:
    """The right option's text."""
    if attribute != "position":
        return str(getattr(asked[0], attribute))
    word = relation(*asked)
    assert word is not None
    return word


def _question(asked: tuple[Thing, ...], attribute: str) -> str:
    """The question's text, as `prismlens.data.shapes` words it."""
    first = asked[0]
    if attribute == "position":
        return f"Where is the {first.shape} relative to the {asked[1].shape}?"
    named = first.shape if attribute == "color" else f"{first.color} object"
    return f"What is the {attribute} of the {named}?"


def _options(
    rng: np.random.Generator, attribute: str, old: str, new: str, places: tuple[int, int]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Four options with both answers at their places, and the letter of each option."""
    names = tuple(RELATIONS.values()) if attribute == "position" else _NAMES[attribute]
    others = [name for name in names if name not in (old, new)]
    rest = iter([others[i] for i in rng.permutation(len(others))[:2]])
    fixed = {places[0]: old, places[1]: new}
    options = tuple(fixed.get(place) or next(rest) for place in range(4))
    return options, {option: LETTERS[place] for place, option in enumerate(options)}


def _letters(index: int, seed: int, split: str) -> tuple[int, int]:
    """Places of the two answers: all twelve ordered pairs once, in random order, for every attribute in turn."""
    turn, number = index % len(ATTRIBUTES), index // len(ATTRIBUTES)
    block, place = divmod(number, len(_LETTER_PAIRS))
    order = np.random.default_rng([seed, list(SPLITS).index(split), 1, turn, block]).permutation(len(_LETTER_PAIRS))
    return _LETTER_PAIRS[order[place]]


_T = TypeVar("_T")


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _check(spec: str, n: int, seed: int, kind: str, split: str) -> None:
    if spec != "shapes":
        raise ItemError(
            f"pairs of {spec!r}",
            needed="'shapes'",
            cause="a photograph cannot be drawn again with one change",
            fix="make your own aligned lists of clean and corrupted items",
        )
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise SettingError(f"{name} = {value!r}", needed=f"a whole number, at least {least}")
    if kind not in KINDS:
        raise SettingError(f"kind {kind!r}", needed=f"one of {', '.join(KINDS)}")
    if split not in SPLITS:
        raise SettingError(f"split {split!r}", needed=f"one of {', '.join(SPLITS)}")
