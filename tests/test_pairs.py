"""Minimal pairs against their own pixels and scenes: one attribute of one object changes, and the answer as promised."""

import ast
import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from prismlens.data.drawing import CELL
from prismlens.data.pairs import ATTRIBUTES, KINDS, Pair, Pairs, load_pairs
from prismlens.data.shapes import SPLITS
from prismlens.errors import ItemError, SettingError
from prismlens.types import Item

PAIRS = {kind: load_pairs("shapes", 36, 5, kind=kind) for kind in KINDS}
EVERY = [pair for kind in KINDS for pair in PAIRS[kind]]


def things(item: Item) -> dict[tuple[int, int], tuple[str, str]]:
    """Cell (row, column) -> shape and colour, read from the text that says what is shown."""
    return {(r, c): (shape, color) for r, c, shape, color in ast.literal_eval(item.meta["scene"].split(":", 1)[1])}


def answered_again(item: Item) -> str:
    """The right option's text, from the words and the scene alone."""
    by_shape = {shape: (cell, color) for cell, (shape, color) in things(item).items()}
    if found := re.fullmatch(r"What is the color of the (\w+)\?", item.question):
        return by_shape[found[1]][1]
    if found := re.fullmatch(r"What is the shape of the (\w+) object\?", item.question):
        return next(shape for shape, color in things(item).values() if color == found[1])
    found = re.fullmatch(r"Where is the (\w+) relative to the (\w+)\?", item.question)
    assert found, item.question
    (row, column), (other_row, other_column) = by_shape[found[1]][0], by_shape[found[2]][0]
    if row == other_row:
        return "left" if column < other_column else "right"
    assert column == other_column, "one word has to do"
    return "above" if row < other_row else "below"


def named(pair: Pair) -> set[str]:
    """Words of the question."""
    return set(re.findall(r"\w+", pair.clean.question))


def test_the_answer_changes_if_and_only_if_the_change_is_relevant():
    for pair in EVERY:
        for item in (pair.clean, pair.corrupted):
            assert item.content == answered_again(item) == item.meta["content"]
            assert len(set(item.options)) == 4
        assert pair.clean.options == pair.corrupted.options and pair.clean.question == pair.corrupted.question
        assert (pair.clean.answer != pair.corrupted.answer) == (pair.kind == "relevant")


def test_one_attribute_of_one_object_changes():
    for pair in EVERY:
        before, after = (set(things(item).items()) for item in (pair.clean, pair.corrupted))
        ((old_cell, (old_shape, old_color)),) = before - after
        ((new_cell, (new_shape, new_color)),) = after - before
        changed = {"position": old_cell != new_cell, "shape": old_shape != new_shape, "color": old_color != new_color}
        assert [name for name, differs in changed.items() if differs] == [pair.attribute]
        assert ({old_shape, old_color} & named(pair) != set()) == (pair.kind == "relevant")
        for item in (pair.clean, pair.corrupted):
            shapes, colors = zip(*things(item).values(), strict=True)
            assert len(set(shapes)) == len(set(colors)) == len(shapes), "objects can still be told apart"


def test_images_are_equal_pixel_for_pixel_outside_the_two_boxes_and_differ_inside():
    for pair in EVERY:
        a, b = (np.asarray(item.image).astype(int) for item in (pair.clean, pair.corrupted))
        assert a.shape == b.shape
        height, width = a.shape[:2]
        inside = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in pair.boxes:
            inside[round(y1 * height) : round(y2 * height), round(x1 * width) : round(x2 * width)] = True
        assert inside.sum() <= 2 * CELL**2, "two objects' boxes, not the whole picture"
        assert (a == b)[~inside].all()
        assert (a != b)[inside].any()
        assert (pair.boxes[0] != pair.boxes[1]) == (pair.attribute == "position")


def test_the_changed_object_is_the_boxed_one_only_where_it_is_relevant():
    for pair in EVERY:
        assert (pair.boxes[0] in pair.clean.boxes) == (pair.kind == "relevant")
        assert (pair.boxes[1] in pair.corrupted.boxes) == (pair.kind == "relevant")


@pytest.mark.parametrize("split", SPLITS)
def test_both_sides_belong_to_the_split(split: str):
    for kind in KINDS:
        for pair in load_pairs("shapes", 6, 1, kind=kind, split=split):
            for item in (pair.clean, pair.corrupted):
                assert split_of(item.meta["scene"]) == split
            assert pair.clean.group == pair.corrupted.group == pair.clean.meta["scene"]


def split_of(signature: str) -> str:
    """The split of a scene with that text: a tenth by hash."""
    tenth = int(hashlib.blake2b(signature.encode(), digest_size=4).hexdigest(), 16) % 10
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"


def test_both_kinds_of_a_seed_share_their_clean_items_and_a_smaller_n_is_a_prefix():
    for a, b in zip(PAIRS["relevant"], PAIRS["elsewhere"], strict=True):
        assert same(a.clean, b.clean) and a.attribute == b.attribute
        assert not same(a.corrupted, b.corrupted)
    few = load_pairs("shapes", 7, 5)
    assert all(same(a.corrupted, b.corrupted) for a, b in zip(few, PAIRS["relevant"][:7], strict=True))
    other = load_pairs("shapes", 7, 6)
    assert not any(same(a.clean, b.clean) for a, b in zip(few, other, strict=True))


def same(a: Item, b: Item) -> bool:
    """Whether two items have the same pixels, words and letter."""
    pixels = np.array_equal(np.asarray(a.image), np.asarray(b.image))
    return pixels and (a.question, a.options, a.answer, a.boxes) == (b.question, b.options, b.answer, b.boxes)


def test_attributes_and_letters_are_balanced():
    pairs = PAIRS["relevant"]
    assert Counter(pair.attribute for pair in pairs) == dict.fromkeys(ATTRIBUTES, 12)
    for attribute in ATTRIBUTES:
        letters = Counter((pair.clean.answer, pair.corrupted.answer) for pair in pairs.only(attribute))
        assert len(letters) == 12 and set(letters.values()) == {1}


def test_all_three_lists_can_be_joined():
    items = [*PAIRS["relevant"].clean, *PAIRS["relevant"].corrupted, *PAIRS["elsewhere"].corrupted]
    assert len({item.id for item in items}) == 3 * 36


def test_pairs_are_a_sequence():
    pairs = PAIRS["relevant"]
    assert isinstance(pairs[3:5], Pairs) and len(pairs[3:5]) == 2 and pairs[3:5][0] is pairs[3]
    assert pairs.clean[4] is pairs[4].clean and pairs.corrupted[4] is pairs[4].corrupted


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"spec": "vstar:x"}, ItemError, "pairs of 'vstar:x'"),
        ({"n": 0}, SettingError, "n = 0"),
        ({"n": True}, SettingError, "n = True"),
        ({"seed": -1}, SettingError, "seed = -1"),
        ({"kind": "other"}, SettingError, "kind 'other'"),
        ({"split": "dev"}, SettingError, "split 'dev'"),
    ],
)
def test_anything_else_is_refused(wrong: dict, error: type, says: str):
    with pytest.raises(error, match=re.escape(says)):
        load_pairs(**{"n": 2, **wrong})


def test_an_unknown_attribute_is_refused():
    with pytest.raises(SettingError, match="attribute 'size'"):
        PAIRS["relevant"].only("size")
