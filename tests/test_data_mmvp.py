"""The MMVP layout: letters, pairs and their score against values worked out by hand, and every refusal's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from prismlens.data.load import load_items
from prismlens.data.mmvp import load_mmvp, pair_accuracy
from prismlens.errors import ItemError, SettingError
from prismlens.models.answers import chosen_letter

HEADER = "Index,Question,Options,Correct Answer"
ROWS = (
    "1,Are the wings open or closed?,(a) Open (b) Closed,(a)",
    "2,Are the wings open or closed?,(a) Open (b) Closed,(b)",
    '3,"Is it red, or blue?",(a)Red (b)Blue,(b) ',
    '4,"Is it red, or blue?",(a)Red (b)Blue,(A)',
)


def _write(root: Path, *rows: str, header: str = HEADER, images: str = "MMVP Images") -> Path:
    (root / "Questions.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    (root / images).mkdir()
    for row in rows:
        index = row.split(",")[0].strip()
        if index.isdecimal():
            Image.new("RGB", (4, 4), (int(index), 0, 0)).save(root / images / f"{index}.jpg")
    return root


def test_letters_options_and_pairs(tmp_path: Path) -> None:
    items = load_mmvp(_write(tmp_path, *ROWS))
    assert [item.answer for item in items] == ["A", "B", "B", "A"]
    assert [item.content for item in items] == ["Open", "Closed", "Blue", "Red"]
    assert [item.group for item in items] == ["pair-001", "pair-001", "pair-002", "pair-002"]
    assert [item.id for item in items] == ["mmvp-001", "mmvp-002", "mmvp-003", "mmvp-004"]
    assert items[2].question == "Is it red, or blue?" and items[2].options == ("Red", "Blue")


def test_an_official_style_answer_is_graded_against_the_upper_case_letter(tmp_path: Path) -> None:
    item = load_mmvp(_write(tmp_path, *ROWS))[1]
    assert chosen_letter("<answer> b</answer>", item.letters) == "B" == item.answer


def test_a_question_has_the_image_of_its_index_whatever_the_order_of_rows(tmp_path: Path) -> None:
    items = load_mmvp(_write(tmp_path, *reversed(ROWS)))
    assert [(item.meta["index"], Path(str(item.image)).name) for item in items] == [
        (4, "4.jpg"),
        (3, "3.jpg"),
        (2, "2.jpg"),
        (1, "1.jpg"),
    ]


def test_the_folder_of_images_may_have_an_underscore(tmp_path: Path) -> None:
    assert len(load_items(f"mmvp:{_write(tmp_path, *ROWS, images='MMVP_Images')}")) == 4


def test_disputed_answers_are_kept_and_marked(tmp_path: Path) -> None:
    rows = [f"{i},Which?,(a) X (b) Y,({'ba'[i % 2]})" for i in (97, 98, 99, 100, 279, 280)]
    items = load_mmvp(_write(tmp_path, *rows))
    assert [item.meta["disputed"] for item in items] == [False, False, True, True, True, True]
    assert [item.answer for item in items] == ["A", "B", "A", "B", "A", "B"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,Which?,(a) X (b) Y,(a)", r"a row with the index 'x'"),
        ("0,Which?,(a) X (b) Y,(a)", r"a row with the index '0'"),
        ("5,Which?,X or Y,(a)", r"the options 'X or Y' for question 5"),
        ("5,Which?,(a) X,(a)", r"the options '\(a\) X' for question 5"),
        ("5,Which?,(a) X (c) Y,(a)", r"the options '\(a\) X \(c\) Y'"),
        ("5,Which?,(a) X (b) ,(a)", r"the options '\(a\) X \(b\) '"),
        ("5,Which?,(a) X (b) Y,(c)", r"the answer '\(c\)' for question 5\n  needed: one of \(a\), \(b\)"),
        ("5,Which?,(a) X (b) Y,", r"the answer '' for question 5"),
        ("5,,(a) X (b) Y,(a)", r"item 'mmvp-005' has an empty question"),
        ("5,Which?,(a) X (b) Y,(a)", r"has question 5 without question 6"),
        ("4,Which?,(a) X (b) Y,(a)", r"asks question 4 more than once"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        load_mmvp(_write(tmp_path, *ROWS, row))


def test_a_bad_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ItemError, match=r"holds nothing\n  needed: the MMVP layout: Questions.csv, and a folder 'MMVP Im"
    ):
        load_mmvp(tmp_path)
    with pytest.raises(ItemError, match=r"missing is not a folder"):
        load_mmvp(tmp_path / "missing")
    _write(tmp_path, header=HEADER)
    with pytest.raises(ItemError, match=r"Questions.csv holds no questions"):
        load_mmvp(tmp_path)
    (tmp_path / "Questions.csv").write_text("Index,Question\n1,Why?\n")
    with pytest.raises(ItemError, match=r"lacks the columns Options, Correct Answer; it has Index, Question"):
        load_mmvp(tmp_path)
    (tmp_path / "Questions.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ItemError, match=r"Questions.csv cannot be read: .*utf-8"):
        load_mmvp(tmp_path)


def test_a_missing_or_broken_image_is_named_at_once(tmp_path: Path) -> None:
    root = _write(tmp_path, *ROWS)
    (root / "MMVP Images" / "3.jpg").write_text("no picture")
    with pytest.raises(ItemError, match=r"item 'mmvp-003': the image .*3.jpg is not a picture"):
        load_mmvp(root)
    (root / "MMVP Images" / "3.jpg").unlink()
    with pytest.raises(ItemError, match=r"item 'mmvp-003': the image .*3.jpg does not exist"):
        load_mmvp(root)


def test_pair_accuracy_counts_pairs_with_both_right() -> None:
    """Six of eight right: two whole pairs of four."""
    groups = ["p", "q", "p", "q", "r", "r", "s", "s"]
    correct = [True, True, True, False, False, True, True, True]
    assert pair_accuracy(groups, correct) == 0.5
    assert pair_accuracy(["p", "p"], [True, True]) == 1.0


def test_pair_accuracy_of_guesses_is_a_quarter() -> None:
    """All sixteen ways of answering two pairs: each pair is right in a quarter of them."""
    ways = [[bool(way >> bit & 1) for bit in range(4)] for way in range(16)]
    assert sum(pair_accuracy(["p", "p", "q", "q"], way) for way in ways) / 16 == 0.25


@pytest.mark.parametrize(
    ("groups", "correct", "message"),
    [
        (["p", "p", "q"], [True] * 3, r"1 groups are not pairs: q \(1\)[\s\S]*a subset that split pairs"),
        (["p"] * 3, [True] * 3, r"1 groups are not pairs: p \(3\)"),
        (["p", "p"], [True], r"2 groups and 1 answers"),
        ([], [], r"0 groups and 0 answers"),
    ],
)
def test_pair_accuracy_refuses_what_is_no_pair(groups, correct, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        pair_accuracy(groups, correct)


def test_nothing_of_mmvp_is_ever_dropped(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"on_bad = 'drop' of the folder .*\n  needed: 'raise'"):
        load_items(f"mmvp:{_write(tmp_path, *ROWS)}", on_bad="drop")
    with pytest.raises(SettingError, match=r"split 'train' of the folder"):
        load_items(f"mmvp:{tmp_path}", split="train")
