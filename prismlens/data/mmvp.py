"""Reads a folder in the MMVP layout into items, and scores its pairs; knows nothing of models or of how they answer.

The layout is that of the dataset `MMVP/MMVP` (Tong et al. 2024, arXiv:2401.06209):

    MMVP Images/1.jpg ... 300.jpg
    Questions.csv       Index,Question,Options,Correct Answer
                        1,Are the butterfly's wings closer to being open or closed?,(a) Open (b) Closed,(a)

Questions 2k - 1 and 2k are a pair: one question about two images that look alike to CLIP, with different answers. The
image of a question is the file named after its index. A list of the images by name (1, 10, 100, ...) is in another
order than the questions, so a copy that numbers the images by their place in such a list has the wrong images.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from prismlens.data.images import image_size
from prismlens.errors import ItemError
from prismlens.types import LETTERS, Item

QUESTIONS = "Questions.csv"
IMAGE_FOLDERS = ("MMVP Images", "MMVP_Images")
"""The release's own name, and the one that loading code often gives its copy."""
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
DISPUTED = frozenset({99, 100, 279, 280})
"""Questions whose official answer readers of the data set have publicly reported as wrong. It is kept, and marked."""

_OPTION = re.compile(r"(?:^|\s)\(([a-z])\)\s*")
_ANSWER = re.compile(r"\s*\(?([a-z])\)?\s*", re.IGNORECASE)


def load_mmvp(folder: str | Path) -> list[Item]:
    """Every question of a folder in the MMVP layout, in the order of `Questions.csv`.

    An item has the id ``"mmvp-001"``, its pair as its group (``"pair-001"`` for questions 1 and 2), the options' texts
    without their letters, and an upper-case answer: (a) is A. `meta` holds `index`, and `disputed`: whether the
    official answer, which is kept, has been reported as wrong. Pixels are decoded when the item is used, not here.

    Raises:
        ItemError: the folder is not in this layout, a row is unusable, or half of a pair is missing.
    """
    root = Path(folder)
    images, table = _image_folder(root), _table(root / QUESTIONS)
    items = [_item(row, images, root / QUESTIONS) for row in table.to_dict("records")]
    _check_pairs(items, root / QUESTIONS)
    return items


def pair_accuracy(groups: Sequence[str], correct: Sequence[bool]) -> float:
    """The share of pairs with both questions right, MMVP's official score.

    Args:
        groups: for each answer the group of its item.
        correct: for each answer whether it is right.

    Raises:
        ItemError: the two differ in length, are empty, or a group has not exactly two answers.
    """
    if len(groups) != len(correct) or not len(groups):
        raise ItemError(
            f"{len(groups)} groups and {len(correct)} answers", needed="a group for every answer, and at least one pair"
        )
    pairs: dict[str, list[bool]] = defaultdict(list)
    for group, right in zip(groups, correct, strict=True):
        pairs[group].append(bool(right))
    if odd := [f"{group} ({len(answers)})" for group, answers in pairs.items() if len(answers) != 2]:
        raise ItemError(
            f"{len(odd)} groups are not pairs: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}",
            needed="two answers in every group",
            cause="a subset that split pairs, or items of another data set",
            fix="score all of MMVP, or choose the subset by group",
        )
    return sum(all(answers) for answers in pairs.values()) / len(pairs)


def _bad(path: Path, what: str, needed: str, fix: str = "correct the file, or download it again") -> ItemError:
    return ItemError(f"{path} {what}", needed=needed, fix=fix)


def _image_folder(root: Path) -> Path:
    """The folder of images of a folder that also has the questions."""
    found = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    if found and (root / QUESTIONS).is_file():
        return found[0]
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    state = f"holds {', '.join(names[:8]) or 'nothing'}" if root.is_dir() else "is not a folder"
    raise ItemError(
        f"{root} {state}",
        needed=f"the MMVP layout: {QUESTIONS}, and a folder {IMAGE_FOLDERS[0]!r} with 1.jpg, 2.jpg, ...",
        cause="the parent or a subfolder was given, or the download is incomplete",
        fix="give the folder that holds both; the dataset is `MMVP/MMVP`",
    )


def _table(path: Path) -> pd.DataFrame:
    """The checked table of questions; every cell is text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise _bad(path, f"cannot be read: {error}", "a UTF-8 file of comma-separated values") from error
    table.columns = [name.strip() for name in table.columns]
    if lacking := [name for name in COLUMNS if name not in table.columns]:
        raise _bad(path, f"lacks the columns {', '.join(lacking)}; it has {', '.join(table.columns)}", "all four")
    if table.empty:
        raise _bad(path, "holds no questions", "a row for every question")
    return table


def _item(row: dict, images: Path, path: Path) -> Item:
    index = row["Index"].strip()
    if not index.isdecimal() or int(index) < 1:
        raise _bad(path, f"has a row with the index {row['Index']!r}", "a whole number, at least 1")
    number, where = int(index), f"question {int(index)}"
    rest, *parts = _OPTION.split(row["Options"])
    letters, options = "".join(parts[::2]), tuple(text.strip() for text in parts[1::2])
    if len(options) < 2 or rest.strip() or not all(options) or letters != LETTERS[: len(letters)].lower():
        raise _bad(path, f"has the options {row['Options']!r} for {where}", "at least two: (a) ... (b) ...")
    answer = _ANSWER.fullmatch(row["Correct Answer"])
    if answer is None or answer[1].lower() not in letters:
        raise _bad(path, f"has the answer {row['Correct Answer']!r} for {where}", f"one of ({'), ('.join(letters)})")
    item = Item(
        image=images / f"{number}.jpg",
        question=row["Question"].strip(),
        options=options,
        answer=answer[1].upper(),
        group=f"pair-{(number + 1) // 2:03d}",
        category="MMVP",
        id=f"mmvp-{number:03d}",
        meta={"index": number, "disputed": number in DISPUTED},
    )
    image_size(images / f"{number}.jpg", item.id)  # a missing or unreadable file is named now, not in mid-run
    return item


def _check_pairs(items: Sequence[Item], path: Path) -> None:
    """Every index occurs once, together with the other one of its pair."""
    numbers = [item.meta["index"] for item in items]
    if repeated := sorted({n for n in numbers if numbers.count(n) > 1}):  # pyright: ignore[reportArgumentType]
        raise _bad(path, f"asks question {repeated[0]} more than once", "one row for each index")
    present = set(numbers)
    for item in items:
        number = int(str(item.meta["index"]))
        partner = number + 1 if number % 2 else number - 1
        if partner not in present:
            raise _bad(path, f"has question {number} without question {partner}", "both questions of every pair")
