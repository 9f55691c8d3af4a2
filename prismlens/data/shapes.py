"""Rendered scenes with questions in the manner of V*Bench; a scene is data, and its picture a pure function of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from prismlens.data.drawing import CELL, COLORS, SHAPES, draw_clutter, draw_shape
from prismlens.errors import SettingError
from prismlens.types import LETTERS, Box, Item

CATEGORIES = ("direct_attributes", "relative_position")
SPLITS = {"train": range(2, 10), "validation": range(1, 2), "test": range(0, 1)}
"""Which tenths of all scenes a split holds. A scene's tenth is a hash of its objects, so no two splits share one,
whatever their seeds."""
CANVASES = ((3, 3), (3, 3), (4, 3), (3, 4))
"""Columns and rows of cells; a cell is 28 pixels. Square canvases are drawn twice as often."""
RELATIONS = {(-1, 0): "left", (1, 0): "right", (0, -1): "above", (0, 1): "below"}
"""Sign of (x, y) from the second named object to the first, and the word for it."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its shape and colour by name, its cell, its size and its shift in the cell (pixels)."""

    shape: str
    color: str
    column: int
    row: int
    size: int
    shift: tuple[int, int]
    tint: tuple[int, int, int]
    """What is added to the colour's red, green and blue, so that colours are not told apart by one exact value."""

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Pixel box ``(x1, y1, x2, y2)``; it never leaves the object's cell."""
        x = self.column * CELL + (CELL - self.size) // 2 + self.shift[0]
        y = self.row * CELL + (CELL - self.size) // 2 + self.shift[1]
        return (x, y, x + self.size, y + self.size)


@dataclass(frozen=True)
class Scene:
    """Objects with distinct shapes, colours and cells, on a canvas of cells, with a seed for background and clutter."""

    things: tuple[Thing, ...]
    columns: int
    rows: int
    style: int

    @property
    def signature(self) -> str:
        """What the scene shows, as text; equal for two scenes that differ only in clutter, size, shift or tint."""
        cells = sorted((t.row, t.column, t.shape, t.color) for t in self.things)
        return f"{self.columns}x{self.rows}:{cells}"

    @property
    def split(self) -> str:
        """The split that the scene belongs to."""
        tenth = int(hashlib.blake2b(self.signature.encode(), digest_size=4).hexdigest(), 16) % 10
        return next(name for name, tenths in SPLITS.items() if tenth in tenths)

    def box(self, thing: Thing) -> Box:
        """The thing's box, normalised xyxy."""
        x1, y1, x2, y2 = thing.corners
        width, height = self.columns * CELL, self.rows * CELL
        return (x1 / width, y1 / height, x2 / width, y2 / height)

    def render(self) -> Image.Image:
        """The picture: background, clutter, then the objects. The same scene gives the same pixels."""
        rng = np.random.default_rng(self.style)
        width, height = self.columns * CELL, self.rows * CELL
        ground = rng.integers(40, 110) + rng.normal(0, 6, (height, width, 1)) + rng.normal(0, 4, (1, 1, 3))
        ground = ground + np.linspace(-12, 12, width)[None, :, None] * rng.uniform(-1, 1)
        image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8), "RGB")
        canvas = ImageDraw.Draw(image)
        draw_clutter(canvas, rng, width, height)
        for thing in self.things:
            rgb = np.clip(np.array(COLORS[thing.color]) + np.array(thing.tint), 0, 255)
            draw_shape(canvas, thing.shape, thing.corners, tuple(int(v) for v in rgb))
        return image


@dataclass(frozen=True)
class Question:
    """A question about a scene before its options are lettered."""

    category: str
    kind: str
    text: str
    content: str
    distractors: tuple[str, ...]
    things: tuple[Thing, ...]

    def item(
        self, scene: Scene, letter: str, rng: np.random.Generator, item_id: str, picture: Image.Image | None = None
    ) -> Item:
        """The question with its right option under `letter` and the distractors in random order.

        The scene is rendered unless its picture is given.
        """
        others = [self.distractors[i] for i in rng.permutation(len(self.distractors))]
        place = LETTERS.index(letter)
        options = (*others[:place], self.content, *others[place:])
        return Item(
            image=picture or scene.render(),
            question=self.text,
            options=options,
            answer=letter,
            boxes=tuple(scene.box(thing) for thing in self.things),
            group=scene.signature,
            category=self.category,
            id=item_id,
            meta={"kind": self.kind, "content": self.content},
        )


def sample_scene(rng: np.random.Generator, split: str) -> Scene:
    """A random scene of the split: four to six objects, no two alike in shape or colour or cell."""
    while True:
        columns, rows = CANVASES[rng.integers(len(CANVASES))]
        count = int(rng.integers(4, 7))
        cells = rng.permutation(columns * rows)[:count]
        shapes, colors = rng.permutation(len(SHAPES))[:count], rng.permutation(len(COLORS))[:count]
        names = list(COLORS)
        things = tuple(
            _thing(rng, SHAPES[s], names[c], int(cell % columns), int(cell // columns))
            for s, c, cell in zip(shapes, colors, cells, strict=True)
        )
        scene = Scene(things, columns, rows, style=int(rng.integers(2**31)))
        if scene.split == split and any(True for _ in _neighbours(scene)):
            return scene


def attribute_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """For every object: its colour asked by its shape, and its shape asked by its colour."""
    questions = []
    for thing in scene.things:
        for kind, answer, names, text in (
            ("color", thing.color, tuple(COLORS), f"What is the color of the {thing.shape}?"),
            ("shape", thing.shape, SHAPES, f"What is the shape of the {thing.color} object?"),
        ):
            others = [name for name in names if name != answer]
            chosen = tuple(others[i] for i in rng.permutation(len(others))[:3])
            questions.append(Question("direct_attributes", kind, text, answer, chosen, (thing,)))
    return questions


def relation_questions(scene: Scene) -> list[Question]:
    """For every ordered pair of objects in one row or one column: where is the first, seen from the second?"""
    words = tuple(RELATIONS.values())
    return [
        Question(
            "relative_position",
            "relation",
            f"Where is the {first.shape} relative to the {second.shape}?",
            word,
            tuple(other for other in words if other != word),
            (first, second),
        )
        for first, second, word in _neighbours(scene)
    ]


def shapes(n: int, *, split: str = "test", seed: int = 0, category: str | None = None) -> list[Item]:
    """`n` items on freshly rendered scenes, two to a scene (one of each category) unless a category is named.

    Letters are balanced inside each category: each letter is right equally often, up to one.

    Raises:
        SettingError: an unknown split or category, or `n` below 1.
    """
    _check(n, split, category)
    kinds = CATEGORIES if category is None else (category,)
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    letters = {kind: _balanced_letters(rng, len(range(place, n, len(kinds)))) for place, kind in enumerate(kinds)}
    items: list[Item] = []
    for index in range(len(letters[kinds[0]])):
        scene = sample_scene(rng, split)
        for kind in (kind for kind in kinds if index < len(letters[kind])):
            item_id = f"shapes-{split}-{seed}-{index:05d}-{kind.split('_')[-1]}"
            items.append(pick_question(scene, kind, rng).item(scene, letters[kind][index], rng, item_id))
    return items


def pick_question(scene: Scene, category: str, rng: np.random.Generator) -> Question:
    """One random question of the category; the four relations, and colour and shape, are equally likely."""
    pool = attribute_questions(scene, rng) if category == "direct_attributes" else relation_questions(scene)
    contents = sorted({q.content if category == "relative_position" else q.kind for q in pool})
    wanted = contents[rng.integers(len(contents))]
    pool = [q for q in pool if wanted in (q.content, q.kind)]
    return pool[rng.integers(len(pool))]


def relation(first: Thing, second: Thing) -> str | None:
    """Where the first is, seen from the second; None where they share neither a row nor a column."""
    step = (int(np.sign(first.column - second.column)), int(np.sign(first.row - second.row)))
    return RELATIONS.get(step)


def _neighbours(scene: Scene) -> Iterator[tuple[Thing, Thing, str]]:
    """Ordered pairs of objects that share a row or a column, with the word for the first seen from the second."""
    for first in scene.things:
        for second in scene.things:
            word = relation(first, second)
            if word is not None:
                yield first, second, word


def _thing(rng: np.random.Generator, shape: str, color: str, column: int, row: int) -> Thing:
    size = int(rng.integers(10, 22))
    slack = (CELL - size) // 2
    shift = rng.integers(-slack, slack + 1, 2)
    red, green, blue = np.clip(rng.normal(0, 34, 3), -90, 90).round().astype(int).tolist()
    return Thing(shape, color, column, row, size, (int(shift[0]), int(shift[1])), (red, green, blue))


def _balanced_letters(rng: np.random.Generator, count: int) -> list[str]:
    """`count` letters A-D, shuffled, each equally often up to one."""
    repeated = np.tile(rng.permutation(4), -(-count // 4))[:count]
    return [LETTERS[i] for i in rng.permutation(repeated)]


def _check(n: int, split: str, category: str | None) -> None:
    if n < 1:
        raise SettingError(f"n = {n}", needed="at least 1 item")
    if split not in SPLITS:
        raise SettingError(f"split {split!r}", needed=f"one of {', '.join(SPLITS)}")
    if category is not None and category not in CATEGORIES:
        raise SettingError(f"category {category!r}", needed=f"one of {', '.join(CATEGORIES)}, or None for both")
