"""The BLINK layout, as parquet and as JSON: letters, images and groups, rows with several images, every refusal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from prismlens.data.blink import SUBTASKS, read_blink
from prismlens.data.images import open_image
from prismlens.data.load import load_items, require_letters
from prismlens.errors import ItemError, SettingError

COLUMNS = ("image_1", "image_2", "image_3", "image_4")


def _png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


def _row(subtask: str = "Counting", number: int = 1, images: tuple = (_png(),), **fields) -> dict:
    row = {
        "idx": f"val_{subtask}_{number}",
        "sub_task": subtask,
        "question": "How many?",
        "prompt": "How many? Select from the following choices.\n(A) 0\n(B) 1\n(C) 2",
        "choices": ["0", "1", "2"],
        "answer": "(C)",
    }
    return {**row, **dict.fromkeys(COLUMNS), **dict(zip(COLUMNS, images, strict=False)), **fields}


def _parquet(root: Path, subtask: str, *rows: dict, split: str = "val") -> Path:
    """A parquet file as the `datasets` library writes it, with its image type."""
    datasets = pytest.importorskip("datasets")
    kinds = {name: datasets.Value("string") for name in ("idx", "sub_task", "question", "prompt", "answer")}
    features = datasets.Features(
        {**kinds, "choices": datasets.List(datasets.Value("string")), **{name: datasets.Image() for name in COLUMNS}}
    )
    columns = {name: [row[name] for row in rows] for name in features}
    for name in COLUMNS:
        columns[name] = [None if cell is None else {"bytes": cell, "path": None} for cell in columns[name]]
    (root / subtask).mkdir(exist_ok=True)
    path = root / subtask / f"{split}-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return path


def _json(root: Path, subtask: str, *rows: object) -> Path:
    """A JSON list beside its images."""
    (root / subtask).mkdir(exist_ok=True)
    for color in ("red", "blue"):
        (root / subtask / f"{color}.png").write_bytes(_png(color))
    (root / subtask / "val.json").write_text(json.dumps(rows))
    return root / subtask


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The five subtasks in the published layout: two rows each, Jigsaw's with three images."""
    for subtask in SUBTASKS:
        images = (_png("red"), _png("blue"), _png("green")) if subtask == "Jigsaw" else (_png(),)
        _parquet(tmp_path, subtask, *(_row(subtask, number, images) for number in (1, 2)))
        _parquet(tmp_path, subtask, _row(subtask, 9, images, answer="hidden"), split="test")
    return tmp_path


def test_rows_with_several_images_are_counted_and_refused(release: Path) -> None:
    with pytest.raises(ItemError) as caught:
        read_blink(release)
    text = str(caught.value)
    assert text.startswith(f"2 of 10 rows of the folder {release} cannot be used:\n")
    assert "Jigsaw/val-00000-of-00001.parquet, line 1: 3 images, and an item has one" in text
    assert "2 rows need several images, as all of Jigsaw's do" in text and "on_bad='drop'" in text


def test_rows_with_several_images_may_be_dropped_and_are_listed(release: Path) -> None:
    found = read_blink(release, on_bad="drop")
    assert [item.id for item in found.items] == [f"val_{s}_{n}" for s in SUBTASKS if s != "Jigsaw" for n in (1, 2)]
    assert list(found.bad["file"]) == ["Jigsaw/val-00000-of-00001.parquet"] * 2 and list(found.bad["line"]) == [1, 2]
    assert str(found.bad["text"].iloc[0]).startswith('{"idx": "val_Jigsaw_1"')
    with pytest.warns(UserWarning, match=r"2 of 10 rows of the folder .* were dropped; the first: 3 images"):
        items = load_items(f"blink:{release}", on_bad="drop", n=4)
    assert sorted(item.category for item in items) == sorted(set(SUBTASKS) - {"Jigsaw"})


def test_a_row_becomes_an_item(release: Path) -> None:
    item = read_blink(release, subtasks=["Counting"]).items[0]
    assert (item.question, item.options, item.answer, item.content) == ("How many?", ("0", "1", "2"), "C", "2")
    assert (item.category, item.id) == ("Counting", "val_Counting_1")
    assert item.meta["sub_task"] == "Counting" and str(item.meta["prompt"]).startswith("How many? Select")
    picture = open_image(item.image)
    assert picture.size == (6, 4) and picture.getpixel((0, 0)) == (255, 0, 0)
    require_letters([item])


def test_the_test_split_with_hidden_answers_is_not_read(release: Path) -> None:
    assert [item.id for item in read_blink(release / "Counting").items] == ["val_Counting_1", "val_Counting_2"]
    assert len(load_items(f"blink:{release / 'Counting'}")) == 2


def test_one_image_with_two_questions_is_one_group(tmp_path: Path) -> None:
    rows = [_row(number=n, images=(_png(color),)) for n, color in enumerate(("red", "blue", "red"), start=1)]
    _parquet(tmp_path, "Counting", *rows)
    groups = [item.group for item in read_blink(tmp_path, subtasks=["Counting"]).items]
    assert groups == ["val_Counting_1", "val_Counting_2", "val_Counting_1"]


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    first = _parquet(tmp_path, "Counting", _row(number=2))
    first.rename(first.with_name("val-00001-of-00002.parquet"))
    second = _parquet(tmp_path, "Counting", _row(number=1))
    second.rename(second.with_name("val-00000-of-00002.parquet"))
    assert [item.id for item in read_blink(tmp_path / "Counting").items] == ["val_Counting_1", "val_Counting_2"]


def test_json_with_images_gives_the_same_items_as_parquet(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    _parquet(tmp_path / "parquet", "Counting", _row(), _row(number=2, images=(_png("blue"),)))
    rows = [_row(images=("red.png",)), _row(number=2, images=("blue.png",))]
    _json(tmp_path, "Counting", *rows)
    ours, theirs = (read_blink(root, subtasks=["Counting"]).items for root in (tmp_path, tmp_path / "parquet"))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.id, one.question, one.options, one.answer, one.group) == (
            other.id,
            other.question,
            other.options,
            other.answer,
            other.group,
        )
        assert open_image(one.image).tobytes() == open_image(other.image).tobytes()
    assert ours[0].image == tmp_path / "Counting" / "red.png"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, r"a int instead of a row"),
        (_row(images=("red.png",), idx=None), r"idx: None is not a str"),
        (_row(images=("red.png",), choices="0"), r"choices: '0' is not a list"),
        (_row(images=("red.png",), choices=["0"]), r"choices: \['0'\] is not at least two texts"),
        (_row(images=("red.png",), choices=["0", " "]), r"choices: \['0', ' '\] is not at least two texts"),
        (_row(images=("red.png",), answer="(D)"), r"answer: '\(D\)' is not the letter of one of 3 choices"),
        (_row(images=("red.png",), answer="hidden"), r"answer: 'hidden' is not the letter of one of 3"),
        (_row(images=()), r"0 images, and an item has one"),
        (_row(images=("red.png", "blue.png")), r"2 images, and an item has one"),
        (_row(images=("green.png",)), r"item 'val_Counting_1': the image .*green.png does not exist"),
        (_row(images=(7,)), r"the image is 7, neither bytes nor a path"),
        (_row(images=("red.png",), question=" "), r"item 'val_Counting_1' has an empty question"),
    ],
)
def test_every_bad_row_is_named(tmp_path: Path, bad: object, message: str) -> None:
    folder = _json(tmp_path, "Counting", _row(number=8, images=("red.png",)), bad)
    with pytest.raises(ItemError, match=rf"1 of 2 rows[\s\S]*Counting/val.json, line 2: {message}"):
        read_blink(folder)
    assert len(read_blink(folder, on_bad="drop").items) == 1


def test_broken_bytes_are_a_bad_row(tmp_path: Path) -> None:
    _parquet(tmp_path, "Counting", _row(), _row(number=2, images=(b"no picture",)))
    with pytest.raises(ItemError, match=r"parquet, line 2: the image cannot be decoded: cannot identify"):
        read_blink(tmp_path / "Counting")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    folder = _json(tmp_path, "Counting")
    (folder / "val.json").write_text('{"a": 1}')
    with pytest.raises(ItemError, match=r"val.json cannot be read: a dict instead of a list"):
        read_blink(folder)
    (folder / "val.json").write_text("[")
    with pytest.raises(ItemError, match=r"val.json cannot be read: Expecting value"):
        read_blink(folder)
    (folder / "val.json").rename(folder / "val-0.parquet")
    pytest.importorskip("datasets")
    with pytest.raises(ItemError, match=r"val-0.parquet cannot be read: .*[Pp]arquet[\s\S]*Git LFS pointer"):
        read_blink(folder)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"has no folder Counting, IQ_Test, .*; it holds nothing\n  needed: the BLINK"):
        read_blink(tmp_path)
    (tmp_path / "Counting").mkdir()
    with pytest.raises(ItemError, match=r"Counting holds no files of the split val[\s\S]*only the split test"):
        read_blink(tmp_path, subtasks=["Counting"])
    _json(tmp_path, "Counting", _row(images=("red.png",)))
    with pytest.raises(ItemError, match=r"has no folder Jigsaw; it holds Counting"):
        read_blink(tmp_path, subtasks=["Counting", "Jigsaw"])
    (tmp_path / "Counting" / "val-0.parquet").write_text("x")
    with pytest.raises(ItemError, match=r"holds .json and .parquet files of the split val[\s\S]*the same rows twice"):
        read_blink(tmp_path / "Counting")


def test_settings_are_checked(tmp_path: Path) -> None:
    folder = _json(tmp_path, "Counting", _row(images=("red.png",)))
    with pytest.raises(SettingError, match=r"subtasks = \['Jigsaw'\] of .*, which is one subtask's folder"):
        read_blink(folder, subtasks=["Jigsaw"])
    with pytest.raises(SettingError, match=r"subtasks = \[\]"):
        read_blink(tmp_path, subtasks=[])
    with pytest.raises(SettingError, match=r"on_bad = 'skip'"):
        read_blink(folder, on_bad="skip")


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "val-0.parquet").write_text("x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingError, match=r"`datasets` is not installed[\s\S]*pip install 'prismlens\[data\]'"):
        read_blink(tmp_path)


def test_reading_leaves_nothing_in_the_cache_of_the_library(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    cache = release / "cache"
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    read_blink(release / "Counting")
    assert not cache.exists()
