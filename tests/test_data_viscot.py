"""Visual-CoT rows: what a row becomes, what stays on disk, and every bad row named with its line."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismlens.data.load import load_items
from prismlens.data.rows import excerpt
from prismlens.data.viscot import read_viscot
from prismlens.errors import ItemError, SettingError

QUESTION = "<image>\nWhat does the child wear?\nProvide a short and direct response."
ANSWER = "<lvr>\n<answer> Denim. </answer>"


def _turns(asked: str = QUESTION, told: str = ANSWER) -> list[dict]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]


def _row(**fields) -> dict:
    row = {"dataset": "flickr30k", "split": "train", "question_id": 31593, "image": ["pics/red.png"]}
    return {**row, "conversations": _turns(), "bboxes": [[0.382, 0.456, 0.718, 0.656]], **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a red and a blue picture in `pics`."""
    (tmp_path / "pics").mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (8, 6), color).save(tmp_path / "pics" / f"{color}.png")
    return tmp_path


def _lines(folder: Path, *rows: dict | str, name: str = "train.jsonl") -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder / name


def _list(folder: Path, *rows: object, name: str = "train.json") -> Path:
    (folder / name).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return folder / name


def test_the_published_example_becomes_a_question_and_the_text_around_the_latents(folder: Path) -> None:
    row = read_viscot(_lines(folder, _row()))[0]
    assert row.item.question == "What does the child wear?\nProvide a short and direct response."
    assert (row.answer_before, row.answer_after) == ("", "\n<answer> Denim. </answer>")
    assert row.item.boxes == ((0.382, 0.456, 0.718, 0.656),)
    assert (row.item.options, row.item.answer) == ((), None)
    assert row.item.meta == {"dataset": "flickr30k", "split": "train", "question_id": 31593, "reference": "Denim."}
    assert (row.item.category, row.item.group, row.item.id) == ("flickr30k", "pics/red.png", "train-1")
    assert row.item.image == folder / "pics" / "red.png"


def test_several_boxes_cut_the_answer_into_pieces_in_order(folder: Path) -> None:
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    told = "First <lvr> then <lvr>\n<answer>both</answer>"
    row = read_viscot(_lines(folder, _row(conversations=_turns(told=told), bboxes=boxes)))[0]
    assert row.pieces == ("First ", " then ", "\n<answer>both</answer>")
    assert (row.answer_before, row.answer_after) == ("First ", "\n<answer>both</answer>")
    assert row.item.boxes == ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1))


def test_an_answer_without_a_tag_is_its_own_reference(folder: Path) -> None:
    row = read_viscot(_lines(folder, _row(conversations=_turns(told="<lvr> A boat. "))))[0]
    assert row.item.meta["reference"] == "A boat." and row.answer_after == " A boat. "


def test_options_in_the_question_stay_there(folder: Path) -> None:
    asked = "Which one?\n(A) red\n(B) blue\n<image>"
    item = read_viscot(_lines(folder, _row(conversations=_turns(asked))))[0].item
    assert item.question == "Which one?\n(A) red\n(B) blue" and item.options == ()


def test_a_placeholder_amid_the_text_leaves_a_line_break(folder: Path) -> None:
    item = read_viscot(_lines(folder, _row(conversations=_turns("Look.\n<image>\nWhat?"))))[0].item
    assert item.question == "Look.\nWhat?"


@pytest.mark.parametrize(
    "boxes", [[0.1, 0.2, 0.3, 0.4], [[0.1, 0.2, 0.3, 0.4]], [[[0.1, 0.2, 0.3, 0.4]]]], ids=["flat", "list", "per image"]
)
def test_the_three_forms_of_boxes_mean_the_same(folder: Path, boxes: list) -> None:
    assert read_viscot(_lines(folder, _row(bboxes=boxes)))[0].item.boxes == ((0.1, 0.2, 0.3, 0.4),)


def test_a_path_and_a_list_of_one_path_mean_the_same_and_start_at_image_root(folder: Path, tmp_path_factory) -> None:
    for image in ("red.png", ["red.png"]):
        path = _lines(tmp_path_factory.mktemp("elsewhere"), _row(image=image))
        assert read_viscot(path, image_root=folder / "pics")[0].item.image == folder / "pics" / "red.png"
        with pytest.raises(ItemError, match=rf"no image file [\s\S]*image paths start elsewhere than at {path.parent}"):
            read_viscot(path)


def test_lines_and_a_list_give_the_same_rows(folder: Path) -> None:
    rows = [_row(id=f"q{i}", image=f"pics/{color}.png") for i, color in enumerate(("red", "blue", "red"))]
    for file in (read_viscot(_lines(folder, *rows)), read_viscot(_list(folder, *rows))):
        assert [file[i].item.id for i in range(len(file))] == ["q0", "q1", "q2"]
        assert [file.opened(i).item.image.getpixel((0, 0)) for i in range(3)] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]  # pyright: ignore[reportAttributeAccessIssue]
        assert file[-1].item.id == "q2" and [row.item.id for row in file] == ["q0", "q1", "q2"]
        assert [row.item.id for row in file[1:]] == ["q1", "q2"] and isinstance(file, Sequence)
        with pytest.raises(IndexError):
            file[3]


def test_lines_are_found_by_offset_behind_blanks_and_wide_characters(folder: Path) -> None:
    path = _lines(folder, "", _row(id="日本語のとても長い名前"), "  ", _row(id="ö"), _row(id=7))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    file = read_viscot(path)
    assert [(file[i].line, file[i].item.id) for i in range(3)] == [
        (2, "日本語のとても長い名前"),
        (4, "ö"),
        (5, "7"),
    ]
    assert list(file.lines) == [2, 4, 5]


def test_lines_stay_on_disk_and_a_copy_in_another_process_reads_them(folder: Path) -> None:
    """The pickle of a thousand long rows is far smaller than the file, and still reads the last row."""
    path = _lines(folder, *(_row(id=f"q{i}", note="x" * 2000) for i in range(1000)))
    packed = pickle.dumps(read_viscot(path))
    assert len(packed) < path.stat().st_size / 50
    assert pickle.loads(packed)[999].item.id == "q999"


def test_a_file_that_changed_under_its_index_is_refused(folder: Path) -> None:
    path = _lines(folder, _row(id="a"), _row(id="b"))
    file = read_viscot(path)
    _lines(folder, _row(id="much longer than before"), _row(id="b"))
    with pytest.raises(ItemError, match=r"train.jsonl has changed since it was indexed"):
        file[1]
    path.unlink()
    with pytest.raises(ItemError, match=r"train.jsonl has changed since it was indexed"):
        file[0]


BAD = [
    ('{"image": [', r"not JSON: Expecting value"),
    ("[1, 2]", r"a list instead of an object"),
    (_row() | {"bboxes": None}, r"bboxes: null is a NoneType"),
    ({"image": "pics/red.png", "conversations": _turns()}, r"no field 'bboxes'; it has image, conversations"),
    (_row(image=["pics/red.png", "pics/blue.png"]), r"image: 2 images, and an item has one"),
    (_row(image="https://host/red.png"), r"image: 'https://host/red.png' is not the path of a file"),
    (_row(image="pics/green.png"), r"no image file .*green.png"),
    (_row(image="pics"), r"no image file .*pics"),
    (_row(bboxes=[]), r"bboxes: no box in \[\]"),
    (_row(bboxes=[[]]), r"bboxes: \[\] is not x1 < x2"),
    (_row(bboxes=[[0.5, 0.1, 0.4, 0.2]]), r"bboxes: \[0.5, 0.1, 0.4, 0.2\] is not x1 < x2"),
    (_row(bboxes=[[0.1, 0.2, 0.4, 0.2]]), r"bboxes: \[0.1, 0.2, 0.4, 0.2\] is not x1 < x2"),
    (_row(bboxes=[[0, 0, 1.01, 1]]), r"bboxes: .* in fractions from 0 to 1"),
    (_row(bboxes=[[-0.1, 0, 1, 1]]), r"bboxes: .* in fractions from 0 to 1"),
    (_row(bboxes=[[0, 0, float("nan"), 1]]), r"bboxes: \[0, 0, nan, 1\]"),
    (_row(bboxes=[[0, 0, True, 1]]), r"bboxes: \[0, 0, True, 1\]"),
    (_row(bboxes=[["0", "0", "1", "1"]]), r"bboxes: \['0', '0', '1', '1'\]"),
    (_row(conversations=_turns(told="<answer>x</answer>")), r"0 <lvr> in the gpt turn and 1 boxes"),
    (_row(conversations=_turns(told="<lvr><lvr>x")), r"2 <lvr> in the gpt turn and 1 boxes"),
    (_row(bboxes=[[0, 0, 1, 1]] * 2), r"1 <lvr> in the gpt turn and 2 boxes"),
    (_row(conversations=_turns(told="<lvr>\n")), r"no answer after the last <lvr>"),
    (_row(conversations=_turns("What?")), r"0 <image> and 0 <lvr> in the human turn"),
    (_row(conversations=_turns("<image><image>What?")), r"2 <image> and 0 <lvr> in the human turn"),
    (_row(conversations=_turns("<image>\n<lvr>What?")), r"1 <image> and 1 <lvr> in the human turn"),
    (_row(conversations=_turns(told="<image><lvr>x")), r"1 <image> in the gpt turn"),
    (_row(conversations=_turns("<image>\n")), r"an empty question"),
    (_row(conversations=_turns() * 2), r"conversations: turns of \['human', 'gpt', 'human', 'gpt'\]"),
    (
        _row(conversations=[{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]),
        r"conversations: a turn without text",
    ),
    (_row(conversations=["hello"]), r"conversations: turns of \[None\]"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_every_bad_row_is_named_with_its_line_and_may_be_dropped(folder: Path, bad, message: str) -> None:
    path = _lines(folder, _row(id="a"), bad, _row(id="b"))
    with pytest.raises(
        ItemError, match=rf"1 of 3 rows of .*train.jsonl cannot be used:\n    train.jsonl, line 2: {message}"
    ):
        read_viscot(path)
    file = read_viscot(path, on_bad="drop")
    assert [file[i].item.id for i in range(len(file))] == ["a", "b"] and list(file.lines) == [1, 3]
    assert list(file.bad.columns) == ["file", "line", "reason", "text"] and list(file.bad["line"]) == [2]
    assert re.match(message, str(file.bad["reason"].iloc[0]))
    assert str(file.bad["text"].iloc[0])[:10] == (bad if isinstance(bad, str) else json.dumps(bad))[:10]


def test_bad_elements_of_a_list_are_named_by_their_place(folder: Path) -> None:
    path = _list(folder, _row(), 3, _row(bboxes=[]))
    with pytest.raises(ItemError, match=r"2 of 3 rows[\s\S]*line 2: a int instead[\s\S]*line 3: bboxes: no box"):
        read_viscot(path)
    assert list(read_viscot(path, on_bad="drop").bad["text"]) == ["3", excerpt(_row(bboxes=[]))]


def test_broken_utf8_is_a_bad_row(folder: Path) -> None:
    path = _lines(folder, _row())
    path.write_bytes(path.read_bytes() + b'{"image": "\xff"}\n')
    with pytest.raises(ItemError, match=r"line 2: not JSON: 'utf-8' codec"):
        read_viscot(path)


def test_bad_rows_are_counted_and_five_are_shown(folder: Path) -> None:
    path = _lines(folder, _row(), *["{"] * 7)
    with pytest.raises(ItemError) as caught:
        read_viscot(path)
    text = str(caught.value)
    assert text.startswith(f"7 of 8 rows of {path} cannot be used:\n")
    assert [int(n) for n in re.findall(r"line (\d+):", text)] == [2, 3, 4, 5, 6]
    assert "and 2 more" in text and "on_bad='drop' leaves them out and lists them in `bad`" in text
    assert len(read_viscot(path, on_bad="drop").bad) == 7


def test_a_file_without_a_usable_row_is_refused_even_with_drop(folder: Path) -> None:
    with pytest.raises(ItemError, match=r"2 of 2 rows[\s\S]*needed: at least one usable row") as caught:
        read_viscot(_lines(folder, "{", "{"), on_bad="drop")
    assert "on_bad" not in str(caught.value)
    for text in ("", "\n\n", "[]"):
        (folder / "empty.json").write_text(text)
        with pytest.raises(ItemError, match=r"empty.json holds no rows"):
            read_viscot(folder / "empty.json")


def test_unusable_files_and_settings(folder: Path) -> None:
    with pytest.raises(ItemError, match=r"nothing.json is no file"):
        read_viscot(folder / "nothing.json")
    (folder / "half.json").write_text('[{"image": ')
    with pytest.raises(ItemError, match=r"half.json is not JSON: Expecting value[\s\S]*broke off"):
        read_viscot(folder / "half.json")
    lists = _list(folder, {"ds_name": "viscot", "data_path": "a.json", "image_folder": "pics"}, name="meta.json")
    with pytest.raises(ItemError, match=r"lists 1 data files[\s\S]*read_viscot\('a.json', image_root='pics'\)"):
        read_viscot(lists)
    with pytest.raises(SettingError, match=r"on_bad = 'skip'\n  needed: one of 'raise', 'drop'"):
        read_viscot(_lines(folder, _row()), on_bad="skip")


def test_a_damaged_picture_is_named_when_its_row_is_read_and_not_before(folder: Path) -> None:
    broken = folder / "pics" / "broken.png"
    broken.write_bytes((folder / "pics" / "red.png").read_bytes()[:45])
    file = read_viscot(_lines(folder, _row(), _row(image="pics/broken.png")))
    assert file[1].item.image == broken and file.opened(0).item.image.size == (8, 6)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        ItemError, match=r"train.jsonl, line 2: item 'train-2': the image .*broken.png cannot be decoded"
    ):
        file.opened(1)
    os.remove(broken)
    with pytest.raises(ItemError, match=r"train.jsonl, line 2: item 'train-2': the image .*broken.png does not exist"):
        file.opened(1)


def test_pictures_are_not_opened_while_indexing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert len(read_viscot(_lines(folder, _row(), _row()))) == 2


def test_load_items_draws_a_balanced_subset_of_open_questions(folder: Path) -> None:
    path = _lines(folder, *(_row(id=f"{name}{i}", dataset=name) for name in ("a", "b") for i in range(6)))
    items = load_items(f"viscot:{path}", n=4, seed=1)
    assert sorted(item.category for item in items) == ["a", "a", "b", "b"]
    whole = [item.id for item in load_items(f"viscot:{path}")]
    assert [item.id for item in items] == [name for name in whole if name in {item.id for item in items}]
    assert len(whole) == 12
    assert {item.id for item in items} < {item.id for item in load_items(f"viscot:{path}", n=7, seed=1)}


def test_load_items_says_how_many_rows_it_drops(folder: Path) -> None:
    path = _lines(folder, _row(), "{", _row())
    with pytest.raises(ItemError, match=r"1 of 3 rows"):
        load_items(f"viscot:{path}")
    with pytest.warns(
        UserWarning, match=r"1 of 3 rows of the file .*train.jsonl were dropped; the first: not JSON"
    ) as seen:
        assert len(load_items(f"viscot:{path}", on_bad="drop")) == 2
    assert len(seen) == 1


def test_equal_ids_are_refused(folder: Path) -> None:
    with pytest.raises(ItemError, match=r"ids occur more than once: 'q'"):
        load_items(f"viscot:{_lines(folder, _row(id='q'), _row(id='q'))}")


def test_columns_of_the_index_are_whole_numbers(folder: Path) -> None:
    assert np.issubdtype(read_viscot(_lines(folder, _row())).lines.dtype, np.integer)
