"""The V*Bench layout: boxes and letters against values worked out by hand, and every bad row named."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from prismlens.data.vstar import QUESTIONS, load_vstar
from prismlens.errors import ItemError

MINI = Path(__file__).parent / "data" / "vstar_mini"
NOTE = {
    "target_object": ["glove"],
    "bbox": [[10, 20, 30, 40]],
    "question": "What is it?",
    "options": ["right", "w1", "w2", "w3"],
}


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A copy of the small data set that a test may damage."""
    return Path(shutil.copytree(MINI, tmp_path / "mini"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Ten questions with four options and eight with two, each on an image of its own, and no test_questions.jsonl."""
    for category, count, options in (("direct_attributes", 10, 4), ("relative_position", 8, 2)):
        (tmp_path / category).mkdir()
        for number in range(count):
            _write(tmp_path / category, f"sa_{number}", {**NOTE, "options": NOTE["options"][:options]}, number)
    return tmp_path


def _write(folder: Path, stem: str, note: dict, shade: int = 0) -> None:
    Image.new("RGB", (100, 80), (shade, 0, len(folder.name))).save(folder / f"{stem}.png")
    (folder / f"{stem}.json").write_text(json.dumps(note), encoding="utf-8")


def test_the_official_letters_and_texts_are_kept() -> None:
    items = {item.id: item for item in load_vstar(MINI)}
    assert list(items)[:2] == ["direct_attributes/china", "direct_attributes/china_boats"]
    assert len(items) == 9
    pillars = items["direct_attributes/china"]
    assert pillars.question == "What is the color of the pillars of the tower?"
    assert pillars.options == ("blue", "white", "red", "green")
    assert (pillars.answer, pillars.content) == ("C", "red")
    assert pillars.category == "direct_attributes"
    assert pillars.meta["question_id"] == "0"
    assert items["relative_position/flower"].options == ("right", "left")


def test_every_official_answer_is_the_first_option_of_its_json() -> None:
    for item in load_vstar(MINI):
        sentence = json.loads((MINI / f"{item.id}.json").read_text(encoding="utf-8"))["options"][0]
        assert item.content is not None and item.content in sentence


def test_the_seed_changes_nothing_where_letters_are_official() -> None:
    first, second = ([(item.id, item.options, item.answer) for item in load_vstar(MINI, seed=s)] for s in (0, 1))
    assert first == second


def test_boxes_surround_the_drawn_figure() -> None:
    """The purple circle fills its box: its colour at the middle of each edge, the background just beyond."""
    item = next(item for item in load_vstar(MINI) if item.id == "direct_attributes/scene_1")
    assert item.boxes == ((20 / 224, 110 / 168, 50 / 224, 140 / 168),)
    picture = Image.open(item.image).convert("RGB")  # pyright: ignore[reportArgumentType]
    assert picture.getpixel((20, 125)) == picture.getpixel((49, 125)) == (128, 0, 128)
    assert picture.getpixel((19, 125)) == picture.getpixel((50, 125)) == (211, 211, 211)


def test_items_on_one_photograph_share_a_group_across_folders() -> None:
    groups = {item.id: item.group for item in load_vstar(MINI)}
    assert groups["direct_attributes/china_boats"] == groups["relative_position/china"] == "direct_attributes/china"
    assert groups["relative_position/flower"] == "direct_attributes/flower"
    assert len(set(groups.values())) == 6


def test_without_the_official_file_letters_are_balanced_and_the_right_text_is_followed(plain: Path) -> None:
    items = load_vstar(plain, seed=3)
    assert {item.content for item in items} == {"right"}
    assert all(set(item.options) == set(NOTE["options"][: len(item.options)]) for item in items)
    four = Counter(item.answer for item in items if item.category == "direct_attributes")
    two = Counter(item.answer for item in items if item.category == "relative_position")
    assert sorted(four.values()) == [2, 2, 3, 3] and set(four) == set("ABCD")
    assert two == {"A": 4, "B": 4}
    wrong_orders = {tuple(o for o in item.options if o != "right") for item in items if len(item.options) == 4}
    assert len(wrong_orders) > 1


def test_the_shuffle_is_a_function_of_the_seed(plain: Path) -> None:
    drawn = [load_vstar(plain, seed=seed) for seed in (0, 0, 1)]
    letters = [[item.answer for item in items] for items in drawn]
    wrong = [[[text for text in item.options if text != "right"] for item in items] for items in drawn]
    assert letters[0] == letters[1] != letters[2]
    assert wrong[0] == wrong[1] != wrong[2]


def test_a_sideways_photograph_measures_its_box_upright(plain: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(plain / "direct_attributes" / "sa_0.png", exif=exif)
    assert load_vstar(plain)[0].boxes == ((10 / 80, 20 / 100, 40 / 80, 60 / 100),)


def test_a_box_that_rounding_pushed_over_the_edge_ends_there(plain: Path) -> None:
    _write(plain / "direct_attributes", "sa_0", {**NOTE, "bbox": [[-0.5, 0, 101, 80.9]]})
    assert load_vstar(plain)[0].boxes == ((0.0, 0.0, 1.0, 1.0),)


@pytest.mark.parametrize("text", ["Q?\n(A) red (one)\n(B) blue", "Q? (A) red (one) (B) blue"])
def test_options_parse_from_lines_and_from_one_line(plain: Path, text: str) -> None:
    shutil.rmtree(plain / "relative_position")
    shutil.rmtree(plain / "direct_attributes")
    for category in ("relative_position", "direct_attributes"):
        (plain / category).mkdir()
        _write(plain / category, "sa_1", NOTE)
    row = {"text": text + "\nAnswer with the option's letter from the given choices directly.", "label": "B"}
    rows = [{**row, "image": f"{c}/sa_1.png", "category": c} for c in ("relative_position", "direct_attributes")]
    (plain / QUESTIONS).write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    item = load_vstar(plain)[0]
    assert (item.question, item.options, item.content) == ("Q?", ("red (one)", "blue"), "blue")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["one"]}, r"has the options \['one'\]\n  needed: 2 to 26 texts"),
        ({"options": ["one", 2]}, r"has the options \['one', 2\]"),
        ({"bbox": []}, r"has no box\n  needed: at least one \[x, y, width, height\]"),
        ({"bbox": [[80, 0, 30, 10]]}, r"has the box \[80, 0, 30, 10\], and its image is 100 x 80 pixels[\s\S]*inside"),
        ({"bbox": [[0, 79, 10, 3]]}, r"has the box \[0, 79, 10, 3\]"),
        ({"bbox": [[-2, 0, 10, 10]]}, r"has the box \[-2, 0, 10, 10\]"),
        ({"bbox": [[5, 5, 0, 10]]}, r"has the box \[5, 5, 0, 10\][\s\S]*positive width"),
        ({"bbox": [[100, 0, 1, 10]]}, r"has the box \[100, 0, 1, 10\]"),
        ({"bbox": [10, 20, 30, 40]}, r"has the box 10,"),
        ({"bbox": [[float("nan"), 0, 10, 10]]}, r"has the box \[nan,"),
        ({"question": " "}, r"has an empty question"),
        ({"question": None}, r"lacks question \(str\)\n  needed: target_object, bbox, question, options; it has"),
    ],
)
def test_a_bad_annotation_is_named(plain: Path, change: dict, message: str) -> None:
    _write(plain / "direct_attributes", "sa_4", {**NOTE, **change})
    with pytest.raises(ItemError, match=r"direct_attributes/sa_4\.json " + message):
        load_vstar(plain)


def _replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "direct_attributes/flower.json").unlink(), r"flower\.json does not exist\n  needed: a JSON"),
        (lambda r: (r / "direct_attributes/flower.jpg").unlink(), r"flower\.json has no image beside it"),
        (lambda r: (r / "direct_attributes/flower.jpg").write_bytes(b""), r"flower'.*flower\.jpg is empty"),
        (lambda r: (r / "direct_attributes/flower.json").write_text("{"), r"flower\.json is not JSON"),
        (lambda r: (r / "direct_attributes/flower.json").write_text("[]"), r"flower\.json holds a list"),
        (lambda r: (r / "direct_attributes/flower.json").write_bytes(b"\xff\xfe"), r"flower\.json is not UTF-8"),
        (lambda r: Image.new("L", (9, 9)).save(r / "direct_attributes/flower.png"), r"flower\.\w+ shares its name"),
        (
            _replace(QUESTIONS, '"direct_attributes/flower.jpg"', '"direct_attributes/sa_1.jpg"'),
            r"flower\.jpg has no line",
        ),
        (lambda r: [p.unlink() for p in (r / "direct_attributes").glob("flower*")], r"jsonl asks about 1 images that"),
        (
            _replace(QUESTIONS, '"label": "A"', '"label": "E"'),
            r"jsonl line 2 has the label 'E'\n  needed: one of A, B, C, D",
        ),
        (_replace(QUESTIONS, '"label": "A"', '"label": ""'), r"jsonl line 2 has the label ''"),
        (_replace(QUESTIONS, "(B) ", "(C) "), r"jsonl line 1 has the text .*\n  needed: a question, then at least two"),
        (_replace(QUESTIONS, '"category": "direct_attributes"', '"category": "x"'), r"line 1 has the category 'x'"),
        (_replace(QUESTIONS, "china_boats", "china"), r"line 2 asks about direct_attributes/china\.jpg a second time"),
        (_replace(QUESTIONS, '"text"', '"txt"'), r"line 1 lacks text \(str\)"),
    ],
)
def test_damage_to_the_folder_is_named(mini: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(mini)
    with pytest.raises(ItemError, match=message):
        load_vstar(mini)


def test_a_folder_in_another_layout_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"nowhere does not exist\n  needed: the V\*Bench layout"):
        load_vstar(tmp_path / "nowhere")
    with pytest.raises(ItemError, match=r"holds nothing\n"):
        load_vstar(tmp_path)
    (tmp_path / "direct_attributes").mkdir()
    with pytest.raises(ItemError, match=r"holds direct_attributes\n[\s\S]*folders direct_attributes and relative_pos"):
        load_vstar(tmp_path)
    (tmp_path / "relative_position").mkdir()
    with pytest.raises(ItemError, match=r"direct_attributes holds no images"):
        load_vstar(tmp_path)


def test_the_committed_folder_is_what_its_script_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_vstar_mini", MINI.parent / "make_vstar_mini.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered while it runs, because its dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        module.main(tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert files == sorted(path.relative_to(MINI) for path in MINI.rglob("*.*"))
    for name in files:
        if name.suffix in (".json", ".jsonl", ".md"):
            assert (tmp_path / name).read_text(encoding="utf-8") == (MINI / name).read_text(encoding="utf-8"), name
    assert sum(path.stat().st_size for path in MINI.rglob("*.*")) < 400_000
