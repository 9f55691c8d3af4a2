"""Scenes against their own pixels, and questions answered again from the scene by other means."""

import ast
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from prismlens.data import shapes as module
from prismlens.data.drawing import CELL, COLORS, SHAPES, draw_shape
from prismlens.data.shapes import (
    CATEGORIES,
    SPLITS,
    Scene,
    Thing,
    attribute_questions,
    pick_question,
    relation_questions,
    sample_scene,
    shapes,
)
from prismlens.errors import SettingError
from prismlens.types import Item

ITEMS = shapes(60, seed=11)


def scenes(count: int, seed: int = 0, split: str = "train") -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def things_of(item: Item) -> tuple[tuple[int, int], list[tuple[int, int, str, str]]]:
    """Canvas (columns, rows) and things (row, column, shape, colour), read from the item's group."""
    canvas, cells = item.group.split(":", 1)
    columns, rows = canvas.split("x")
    return (int(columns), int(rows)), ast.literal_eval(cells)


def answered_again(item: Item) -> tuple[str, list[tuple[int, int]]]:
    """The right option's text, and the cells of the things asked about, from the words and the scene alone."""
    _, things = things_of(item)
    by_shape = {shape: (row, column, color) for row, column, shape, color in things}
    by_color = {color: (row, column, shape) for row, column, shape, color in things}
    if found := re.fullmatch(r"What is the color of the (\w+)\?", item.question):
        row, column, color = by_shape[found[1]]
        return color, [(row, column)]
    if found := re.fullmatch(r"What is the shape of the (\w+) object\?", item.question):
        row, column, shape = by_color[found[1]]
        return shape, [(row, column)]
    found = re.fullmatch(r"Where is the (\w+) relative to the (\w+)\?", item.question)
    assert found, item.question
    (row, column, _), (other_row, other_column, _) = by_shape[found[1]], by_shape[found[2]]
    if row == other_row:
        word = "left" if column < other_column else "right"
    else:
        assert column == other_column, "one word has to do"
        word = "above" if row < other_row else "below"
    return word, [(row, column), (other_row, other_column)]


def test_every_answer_follows_from_the_scene():
    for item in ITEMS:
        content, _ = answered_again(item)
        assert item.content == content == item.meta["content"]
        assert len(set(item.options)) == len(item.options) == 4
        kind = {"color": COLORS, "shape": SHAPES, "relation": ("left", "right", "above", "below")}[item.meta["kind"]]
        assert set(item.options) <= set(kind)


def test_every_box_lies_in_the_cell_of_the_thing_asked_about():
    for item in ITEMS:
        (columns, rows), _ = things_of(item)
        assert item.image.size == (columns * CELL, rows * CELL)
        _, cells = answered_again(item)
        assert len(item.boxes) == len(cells)
        for (x1, y1, x2, y2), (row, column) in zip(item.boxes, cells, strict=True):
            assert column <= x1 * columns + 1e-9 < x2 * columns <= column + 1 + 1e-9
            assert row <= y1 * rows + 1e-9 < y2 * rows <= row + 1 + 1e-9


def test_a_box_holds_all_pixels_of_its_thing_and_little_else():
    for scene in scenes(25):
        plain = replace(scene, things=tuple(replace(t, tint=(0, 0, 0)) for t in scene.things))
        pixels = np.asarray(plain.render())
        for thing in plain.things:
            ys, xs = np.nonzero((pixels == COLORS[thing.color]).all(-1))
            x1, y1, x2, y2 = (
                round(v * size)
                for v, size in zip(scene.box(thing), (pixels.shape[1], pixels.shape[0]) * 2, strict=True)
            )
            assert x1 <= xs.min() and xs.max() < x2 and y1 <= ys.min() and ys.max() < y2
            assert xs.max() + 1 - xs.min() >= 0.7 * thing.size and ys.max() + 1 - ys.min() >= 0.7 * thing.size
            assert len(xs) > 0.15 * thing.size**2


def test_taking_a_thing_away_changes_its_box_and_nothing_else():
    for scene in scenes(10, seed=1):
        whole = np.asarray(scene.render())
        for thing in scene.things:
            rest = np.asarray(replace(scene, things=tuple(t for t in scene.things if t != thing)).render())
            x1, y1, x2, y2 = thing.corners
            changed = (whole != rest).any(-1)
            assert changed[y1:y2, x1:x2].any()
            changed[y1:y2, x1:x2] = False
            assert not changed.any()


def test_no_two_shapes_look_alike():
    for size in (10, 21):
        drawn = []
        for shape in SHAPES:
            image = Image.new("1", (size, size))
            draw_shape(ImageDraw.Draw(image), shape, (0, 0, size, size), (1,))
            drawn.append(np.asarray(image))
        for i, one in enumerate(drawn):
            assert all((one != other).sum() > 0.05 * size**2 for other in drawn[:i]), SHAPES[i]


def test_no_two_things_of_a_scene_share_shape_colour_or_cell():
    for scene in scenes(200):
        assert 4 <= len(scene.things) <= 6
        for key in (lambda t: t.shape, lambda t: t.color, lambda t: (t.row, t.column)):
            assert len({key(thing) for thing in scene.things}) == len(scene.things)
        assert all(0 <= t.column < scene.columns and 0 <= t.row < scene.rows for t in scene.things)


def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only 576 scenes are left, so that a thousand draws meet most of them."""
    monkeypatch.setattr(module, "CANVASES", ((2, 2),))
    monkeypatch.setattr(module, "SHAPES", SHAPES[:4])
    monkeypatch.setattr(module, "COLORS", dict(list(COLORS.items())[:4]))


def drawn(split: str) -> set[str]:
    return {scene.signature for seed in range(4) for scene in scenes(100, seed, split)}


def test_splits_share_no_scene_whatever_the_seeds(monkeypatch: pytest.MonkeyPatch):
    small_world(monkeypatch)
    found = {split: drawn(split) for split in SPLITS}
    assert sum(map(len, found.values())) > 250
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_splits_that_go_by_anything_else_would_share_scenes(monkeypatch: pytest.MonkeyPatch):
    small_world(monkeypatch)
    by_clutter = property(lambda scene: list(SPLITS)[scene.style % 3])
    monkeypatch.setattr(Scene, "split", by_clutter)
    assert drawn("train") & drawn("test")


def test_the_split_is_a_matter_of_what_the_scene_shows():
    for scene in scenes(30):
        moved = tuple(replace(t, size=10, shift=(0, 0), tint=(1, 2, 3)) for t in reversed(scene.things))
        same = Scene(moved, scene.columns, scene.rows, scene.style + 1)
        assert same.signature == scene.signature and same.split == scene.split
    assert sorted(tenth for tenths in SPLITS.values() for tenth in tenths) == list(range(10))


def test_items_come_from_the_split_that_was_asked_for():
    for split in SPLITS:
        for item in shapes(6, split=split, seed=5):
            (columns, rows), cells = things_of(item)
            things = tuple(Thing(s, c, column, row, 10, (0, 0), (0, 0, 0)) for row, column, s, c in cells)
            assert Scene(things, columns, rows, 0).split == split


def test_the_same_seed_gives_the_same_items_to_the_pixel_and_another_seed_does_not():
    again, other = shapes(60, seed=11), shapes(60, seed=12)
    for one, two in zip(ITEMS, again, strict=True):
        assert one.image.tobytes() == two.image.tobytes()
        assert (one.question, one.options, one.answer, one.boxes, one.id) == (
            two.question, two.options, two.answer, two.boxes, two.id,
        )  # fmt: skip
    assert not {item.group for item in ITEMS} & {item.group for item in other}
    assert len({item.id for item in (*ITEMS, *other)}) == 120


def test_a_group_is_a_scene_and_holds_one_item_of_each_category():
    assert len({item.group for item in ITEMS}) == 30
    for one, two in zip(ITEMS[::2], ITEMS[1::2], strict=True):
        assert one.group == two.group and one.image.tobytes() == two.image.tobytes()
        assert (one.category, two.category) == CATEGORIES
    assert all(one.group != two.group for one, two in pairwise(ITEMS[::2]))


def uneven(items: list[Item]) -> int:
    """The largest difference between how often two letters are right, inside a category."""
    worst = 0
    for category in CATEGORIES:
        counts = Counter(item.answer for item in items if item.category == category)
        spread = [counts.get(letter, 0) for letter in "ABCD"]
        worst = max(worst, max(spread) - min(spread))
    return worst


@pytest.mark.parametrize("n", [1, 2, 8, 10, 12, 14, 16])
def test_letters_are_balanced_in_each_category(n: int):
    assert max(uneven(shapes(n, seed=seed)) for seed in range(6)) <= 1
    for category in CATEGORIES:
        assert uneven(shapes(n, seed=1, category=category)) <= 1


def test_letters_are_balanced_when_the_number_of_items_is_odd():
    assert max(uneven(shapes(n, seed=seed)) for n in (5, 9, 11) for seed in range(6)) <= 1


@pytest.mark.parametrize("n", [1, 5, 9])
def test_an_odd_number_of_items_is_given(n: int):
    items = shapes(n, seed=2)
    assert len(items) == n
    counts = Counter(item.category for item in items)
    assert counts[CATEGORIES[0]] - counts[CATEGORIES[1]] == 1


def test_one_category_alone():
    for category in CATEGORIES:
        items = shapes(7, seed=2, category=category)
        assert [item.category for item in items] == [category] * 7
        assert len({item.group for item in items}) == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": -3}, "n = -3"),
        ({"n": 2, "split": "dev"}, "split 'dev'.*train, validation, test"),
        ({"n": 2, "category": "counting"}, "category 'counting'.*direct_attributes, relative_position"),
    ],
)
def test_bad_settings_are_refused_with_what_was_needed(options: dict, said: str):
    with pytest.raises(SettingError, match=f"(?s){said}"):
        shapes(**options)


def test_all_questions_of_a_scene_are_there_once():
    for scene in scenes(20):
        attributes = attribute_questions(scene, np.random.default_rng(0))
        assert len({q.text for q in attributes}) == len(attributes) == 2 * len(scene.things)
        in_line = sum(
            (a.row == b.row) != (a.column == b.column) for a in scene.things for b in scene.things if a is not b
        )
        relations = relation_questions(scene)
        assert len({q.text for q in relations}) == len(relations) == in_line > 0


def test_picked_questions_favour_no_kind_and_no_relation():
    rng, pool = np.random.default_rng(0), scenes(400)
    kinds = Counter(pick_question(scene, "direct_attributes", rng).kind for scene in pool)
    words = Counter(pick_question(scene, "relative_position", rng).content for scene in pool)
    assert set(kinds) == {"color", "shape"} and abs(kinds["color"] / 400 - 1 / 2) < 0.1
    assert set(words) == {"left", "right", "above", "below"}
    assert all(abs(count / 400 - 1 / 4) < 0.09 for count in words.values()), words


def test_the_right_option_stands_under_its_letter_and_the_others_in_any_order():
    scene = scenes(1)[0]
    question = relation_questions(scene)[0]
    orders = set()
    for seed in range(40):
        item = question.item(scene, "C", np.random.default_rng(seed), "one")
        assert item.options[2] == question.content
        orders.add(item.options)
    assert len(orders) == 6
