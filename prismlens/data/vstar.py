"""Reads a folder in the V*Bench layout into items, and refuses any row that it cannot read; knows nothing of models.

The layout is that of the dataset `craigwu/vstar_bench` (Wu & Xie 2023, arXiv:2312.14135):

    direct_attributes/sa_4690.jpg       the photograph
    direct_attributes/sa_4690.json      {"target_object": ["glove"], "bbox": [[564, 142, 155, 157]],
                                         "question": ..., "options": [...]}
    relative_position/...               the same
    test_questions.jsonl                {"image": "direct_attributes/sa_4690.jpg", "category": ..., "label": "A",
                                         "text": "...?\\n(A) rubber\\n(B) cotton...", "question_id": ...}

`bbox` is x, y, width, height in pixels (so `normalize_bbox` in the authors' `vstar_bench_eval.py` reads a box). In a
per-image JSON the first option is the right one (there `option_chosen == 0` counts as correct), and options are whole
sentences; `test_questions.jsonl` has its own short options, lettered. The release's other folders, `OCR` and
`GPT4V-hard`, are other tests and are not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prismlens.data.images import image_size
from prismlens.errors import ItemError
from prismlens.types import LETTERS, Box, Item

CATEGORIES = ("direct_attributes", "relative_position")
QUESTIONS = "test_questions.jsonl"

_KEYS = {"target_object": list, "bbox": list, "question": str, "options": list}
_ROW_KEYS = {"image": str, "text": str, "category": str, "label": str}
_OPTION = re.compile(r"(?:^|\s)\(([A-Z])\)\s")
_INSTRUCTION = re.compile(r"\s*Answer with the option's letter[^\n]*$", re.IGNORECASE)
_OVERHANG = 1.0
"""Pixels by which a hand-drawn box may pass the image's edge through rounding; such a box ends at the edge."""


@dataclass(frozen=True)
class _Official:
    """One line of `test_questions.jsonl`: the question, the options in their official order, and the right letter."""

    question: str
    options: tuple[str, ...]
    answer: str
    question_id: object


def load_vstar(folder: str | Path, *, seed: int = 0) -> list[Item]:
    """Every question of a folder in the V*Bench layout, by category and then by file name.

    Where the folder has `test_questions.jsonl`, question, options and letters are exactly the official ones and `seed`
    changes nothing. Otherwise the options come from the per-image JSON and are shuffled with `seed`: among the items of
    one category with equally many options each letter is right equally often, up to one, and every item's wrong options
    are permuted by a generator seeded with the item's id.

    An item has the id ``"direct_attributes/sa_4690"``, the folder as its category, normalised xyxy boxes (pixels over
    the upright image's size), and `meta` with `target_object`, `bbox` (as in the file) and `question_id`. Its group is
    the id of the first item whose image file has the same bytes. Pixels are decoded when the item is used, not here.

    Raises:
        ItemError: the folder is not in this layout, or a row is unusable; the message names the file.
    """
    root = Path(folder)
    _check_layout(root)
    official = _official(root / QUESTIONS) if (root / QUESTIONS).exists() else None
    paths = [path for category in CATEGORIES for path in _images(root / category)]
    groups: dict[str, str] = {}
    items = [_item(path, official, groups) for path in paths]
    if official is None:
        return _shuffled(items, seed)
    if extra := sorted(official.keys() - {_name(path) for path in paths}):
        raise _bad(
            root / QUESTIONS,
            f"asks about {len(extra)} images that are not there: {', '.join(extra[:3])}",
            "the image of every line",
        )
    return items


def _name(path: Path) -> str:
    """An image as `test_questions.jsonl` names it: folder and file."""
    return f"{path.parent.name}/{path.name}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(path, f"is not UTF-8 text: {error}", "a text file") from error


def _bad(path: Path, what: str, needed: str, fix: str = "correct the file, or download it again") -> ItemError:
    return ItemError(f"{path} {what}", needed=needed, fix=fix)


def _check_layout(root: Path) -> None:
    """Both category folders are there."""
    if all((root / category).is_dir() for category in CATEGORIES):
        return
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())
        found = f"holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"
    else:
        found = "is a file" if root.exists() else "does not exist"
    raise ItemError(
        f"the folder {root} {found}",
        needed=f"the V*Bench layout: folders {' and '.join(CATEGORIES)}, each with images and a JSON beside each image",
        cause="the parent or a subfolder was given, or the download is incomplete",
        fix="give the folder that holds both; the dataset is `craigwu/vstar_bench`",
    )


def _images(folder: Path) -> list[Path]:
    """The image files by name: every file that is neither JSON nor hidden. Each JSON has its image, one per stem."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() != ".json"]
    stems = [path.stem for path in images]
    for path in files:
        if path.suffix.lower() == ".json" and path.stem not in stems:
            raise _bad(path, "has no image beside it", f"an image such as {path.stem}.jpg")
    for path in images:
        if stems.count(path.stem) > 1:
            raise _bad(path, "shares its name with another image", "one image for each JSON", "rename one of them")
    if not images:
        raise _bad(folder, "holds no images", "images with a JSON beside each")
    return images


def _item(path: Path, official: Mapping[str, _Official] | None, groups: dict[str, str]) -> Item:
    """One image's item; `groups` maps a digest of image bytes to the first id that had them, and grows."""
    note, row = _annotation(path.with_suffix(".json")), None
    category, item_id = path.parent.name, f"{path.parent.name}/{path.stem}"
    if official is not None:
        row = official.get(_name(path))
        if row is None:
            raise _bad(path, f"has no line in {QUESTIONS}", "one line for each image")
    size = image_size(path, item_id)
    digest = hashlib.blake2b(path.read_bytes()).hexdigest()
    return Item(
        image=path,
        question=row.question if row else note["question"],
        options=row.options if row else tuple(note["options"]),
        answer=row.answer if row else LETTERS[0],
        boxes=tuple(_box(box, size, path.with_suffix(".json")) for box in note["bbox"]),
        group=groups.setdefault(digest, item_id),
        category=category,
        id=item_id,
        meta={
            "target_object": note["target_object"],
            "bbox": note["bbox"],
            "question_id": row.question_id if row else None,
        },
    )


def _annotation(path: Path) -> dict:
    """The checked content of a per-image JSON."""
    if not path.exists():
        raise _bad(path, "does not exist", "a JSON beside every image")
    note = _fields(_text(path), _KEYS, path, "")
    if not note["question"].strip():
        raise _bad(path, "has an empty question", "some text")
    options = note["options"]
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(option, str) for option in options):
        raise _bad(path, f"has the options {options}", f"2 to {len(LETTERS)} texts")
    if not note["bbox"]:
        raise _bad(path, "has no box", "at least one [x, y, width, height] in `bbox`")
    return note


def _fields(text: str, keys: Mapping[str, type], path: Path, line: str) -> dict:
    """`text` as a JSON object that has `keys` with values of those types."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad(path, f"{line}is not JSON: {error}", "a JSON object") from error
    if not isinstance(row, dict):
        raise _bad(path, f"{line}holds a {type(row).__name__}", "a JSON object")
    wrong = [f"{key} ({kind.__name__})" for key, kind in keys.items() if not isinstance(row.get(key), kind)]
    if wrong:
        raise _bad(path, f"{line}lacks {', '.join(wrong)}", f"{', '.join(keys)}; it has {', '.join(row) or 'nothing'}")
    return row


def _box(box: object, size: tuple[int, int], path: Path) -> Box:
    """Pixel x, y, width, height as normalised xyxy."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    x, y, w, h = box if isinstance(box, list) and numbers else (0, 0, 0, 0)
    width, height = size
    inside = min(x, y) >= -_OVERHANG and x + w <= width + _OVERHANG and y + h <= height + _OVERHANG
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if not (numbers and inside and x1 < x2 and y1 < y2):
        raise ItemError(
            f"{path} has the box {box}, and its image is {width} x {height} pixels",
            needed="[x, y, width, height] in pixels, inside the image, with a positive width and height",
            cause="two corners instead of a corner and a size, or an image that was resized without its boxes",
            fix="correct the box",
        )
    return (x1 / width, y1 / height, x2 / width, y2 / height)


def _official(path: Path) -> dict[str, _Official]:
    """The lines of `test_questions.jsonl` by image name."""
    rows: dict[str, _Official] = {}
    for number, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        line = f"line {number} "
        row = _fields(text, _ROW_KEYS, path, line)
        question, options = _parse(row["text"], path, line)
        label = row["label"].strip()
        if label not in LETTERS[: len(options)] or len(label) != 1:
            raise _bad(path, f"{line}has the label {label!r}", f"one of {', '.join(LETTERS[: len(options)])}")
        if row["image"].split("/")[0] != row["category"]:
            raise _bad(path, f"{line}has the category {row['category']!r} for {row['image']}", "the image's folder")
        if row["image"] in rows:
            raise _bad(path, f"{line}asks about {row['image']} a second time", "one line for each image")
        rows[row["image"]] = _Official(question, options, label, row.get("question_id"))
    return rows


def _parse(text: str, path: Path, line: str) -> tuple[str, tuple[str, ...]]:
    """Question and options of ``"Q? (A) x (B) y"``; the closing instruction to answer with a letter is dropped."""
    question, *rest = _OPTION.split(_INSTRUCTION.sub("", text))
    letters, options = rest[::2], tuple(option.strip() for option in rest[1::2])
    if len(options) < 2 or "".join(letters) != LETTERS[: len(letters)] or not all(options) or not question.strip():
        raise _bad(path, f"{line}has the text {text!r}", "a question, then at least two options: (A) ... (B) ...")
    return question.strip(), options


def _shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """The items, whose right option comes first, with letters balanced by category and number of options."""
    strata: dict[tuple[str, int], list[str]] = defaultdict(list)
    for item in items:
        strata[item.category, len(item.options)].append(item.id)
    place: dict[str, int] = {}
    for (category, count), ids in strata.items():
        rng = np.random.default_rng([seed, CATEGORIES.index(category), count])
        cycle = np.tile(rng.permutation(count), -(-len(ids) // count))[: len(ids)]
        place |= zip(ids, (int(p) for p in rng.permutation(cycle)), strict=True)
    return [_lettered(item, place[item.id], seed) for item in items]


def _lettered(item: Item, place: int, seed: int) -> Item:
    """The item with its first option moved to `place`, the others in an order of its own."""
    own = int.from_bytes(hashlib.blake2b(item.id.encode(), digest_size=8).digest(), "big")
    right, *wrong = item.options
    wrong = [wrong[i] for i in np.random.default_rng([seed, own]).permutation(len(wrong))]
    return replace(item, options=(*wrong[:place], right, *wrong[place:]), answer=LETTERS[place])
