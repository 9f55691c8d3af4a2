"""Specs, subsets and lists: what comes back, in which order, and every refusal's words."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from prismlens.data.load import DEFAULT_SHAPES, load_items, require_letters
from prismlens.data.shapes import shapes
from prismlens.errors import ItemError, SettingError
from prismlens.types import Item

MINI = Path(__file__).parent / "data" / "vstar_mini"


def _item(**fields) -> Item:
    return Item(**{"image": Image.new("RGB", (4, 4)), "question": "Q?", **fields})


def _many(*counts: int) -> list[Item]:
    return [_item(id=f"{c}-{i}", category=f"c{c}") for c, count in enumerate(counts) for i in range(count)]


def _ids(items) -> list[str]:
    return [item.id for item in items]


def test_shapes_come_from_the_renderer_with_seed_and_split() -> None:
    wanted = shapes(6, split="validation", seed=4)
    found = load_items("shapes", n=6, seed=4, split="validation")
    assert _ids(found) == _ids(wanted) and [i.question for i in found] == [i.question for i in wanted]
    assert _ids(load_items("shapes", n=6, seed=5, split="validation")) != _ids(wanted)


def test_shapes_default_to_two_hundred() -> None:
    assert len(load_items("shapes")) == DEFAULT_SHAPES == 200


def test_a_folder_loads_from_a_spec_and_from_a_path() -> None:
    assert _ids(load_items(f"vstar:{MINI}")) == _ids(load_items(MINI))
    assert len(load_items(MINI)) == 9


def test_the_seed_reaches_the_order_of_options(tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "mini")
    (tmp_path / "mini" / "test_questions.jsonl").unlink()
    drawn = [[item.options for item in load_items(tmp_path / "mini", seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_subset_is_balanced_ordered_nested_and_seeded() -> None:
    items = _many(30, 3, 30)
    small, large, other = (load_items(items, n=n, seed=s) for n, s in ((12, 0), (21, 0), (12, 1)))
    assert Counter(item.category for item in small) == {"c0": 5, "c1": 3, "c2": 4}
    assert _ids(small) == [i for i in _ids(items) if i in set(_ids(small))]
    assert set(_ids(small)) < set(_ids(large))
    assert _ids(load_items(items, n=12, seed=0)) == _ids(small) != _ids(other)
    assert _ids(load_items(items, n=63)) == _ids(items)
    assert Counter(item.category for item in load_items(MINI, n=6)) == {"direct_attributes": 3, "relative_position": 3}


def test_empty_ids_and_groups_are_filled_in_and_given_ones_kept() -> None:
    given = [_item(), _item(id="mine"), _item(group="scene")]
    found = load_items(given)
    assert [(item.id, item.group) for item in found] == [
        ("item-0000", "item-0000"),
        ("mine", "mine"),
        ("item-0002", "scene"),
    ]
    assert given[0].id == "" and isinstance(found, tuple)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape", r"no items are called 'shape'\n[\s\S]*did you mean 'shapes'\?"),
        ("vstr:folder", r"'vstr:folder'[\s\S]*did you mean 'vstar:DIR' or 'viscot:FILE'\?"),
        ("vstar", r"'vstar'[\s\S]*did you mean 'vstar:DIR' or 'viscot:FILE'\?"),
        ("vstar:", r"'vstar:'[\s\S]*a path left out[\s\S]*did you mean 'vstar:DIR' or 'viscot:FILE'\?"),
        ("shapes:test", r"'shapes:test'[\s\S]*did you mean 'shapes'"),
        ("viscott:a.jsonl", r"'viscott:a.jsonl'[\s\S]*did you mean 'viscot:FILE'"),
        ("mmpv:folder", r"'mmpv:folder'[\s\S]*did you mean 'mmvp:DIR'"),
        ("blink", r"'blink'[\s\S]*a path left out[\s\S]*did you mean 'blink:DIR'"),
        (
            "zzz",
            r"needed: one of 'shapes', 'vstar:DIR', 'mmvp:DIR', 'blink:DIR', 'viscot:FILE', or a list of items"
            r"[\s\S]*fix: write for example 'shapes'",
        ),
        (str(MINI), r"likely cause: a path without its prefix"),
    ],
)
def test_an_unknown_spec_names_its_neighbours(spec: str, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        load_items(spec)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([_item(id="a"), _item(id="b"), _item(id="a")], r"1 ids occur more than once: 'a'\n"),
        ([_item(id="item-0001"), _item()], r"'item-0001'\n[\s\S]*filled in for items without an id"),
        ([], r"the list of items is empty"),
        ([_item(), {"question": "Q?"}], r"element 1 of the list is a dict\n  needed: an Item"),
        (_item(), r"a Item was given as items[\s\S]*put a single item in a list"),
        ({"a": _item()}, r"a dict was given as items"),
        (None, r"a NoneType was given as items"),
    ],
)
def test_a_bad_list_is_refused(items, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        load_items(items)


def test_a_repeated_id_is_refused_even_outside_the_subset() -> None:
    with pytest.raises(ItemError, match=r"ids occur more than once: 'a'"):
        load_items([_item(id="a"), _item(id="b"), _item(id="a")], n=1)


@pytest.mark.parametrize("source", [MINI, _many(9)], ids=["folder", "list"])
def test_more_items_than_there_are_is_an_error(source) -> None:
    with pytest.raises(ItemError, match=r"n = 10, and the (folder|list).* holds 9 items\n  needed: n from 1 to 9"):
        load_items(source, n=10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [0, -1, 2.0, True])
@pytest.mark.parametrize("source", ["shapes", MINI, _many(3)], ids=["shapes", "folder", "list"])
def test_n_has_to_be_a_positive_whole_number(source, n) -> None:
    with pytest.raises(SettingError, match=rf"n = {n}\n  needed: a whole number, at least 1"):
        load_items(source, n=n)


def test_a_split_is_refused_where_there_are_none() -> None:
    for source in (MINI, _many(2)):
        with pytest.raises(SettingError, match=r"split 'train' of the (folder|list)[\s\S]*only rendered scenes"):
            load_items(source, split="train")
    with pytest.raises(SettingError, match=r"split 'tset'"):
        load_items("shapes", n=2, split="tset")


@pytest.mark.parametrize("source", ["shapes", MINI, _many(3)], ids=["shapes", "folder", "list"])
def test_only_rows_of_some_sources_are_ever_dropped(source) -> None:
    assert len(load_items(source, n=3, on_bad="raise")) == 3
    with pytest.raises(
        SettingError, match=r"on_bad = 'drop' of .*\n  needed: 'raise'\n.*only rows of BLINK and Visual"
    ):
        load_items(source, n=3, on_bad="drop")
    with pytest.raises(SettingError, match=r"on_bad = 'ignore'\n  needed: one of 'raise', 'drop'"):
        load_items(source, n=3, on_bad="ignore")


def test_an_unknown_keyword_raises() -> None:
    with pytest.raises(TypeError, match="shuffle"):
        load_items("shapes", shuffle=True)  # pyright: ignore[reportCallIssue]


def test_letters_are_required_with_the_items_that_lack_them() -> None:
    require_letters(load_items(MINI))
    fine = _item(id="fine", options=("x", "y"), answer="A")
    lacking = [_item(id=f"open-{i}") for i in range(6)]
    with pytest.raises(
        ItemError, match=r"6 with no options \('open-0', .*'open-4', \.\.\.\); 1 with no answer \('blind'\)"
    ):
        require_letters([fine, *lacking, _item(id="blind", options=("x", "y"))])
