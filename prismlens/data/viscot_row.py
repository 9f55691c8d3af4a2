"""Turns one Visual-CoT row in the form of LVR into a question and the text around its latents; knows nothing of files.

The form is that of the training files of LVR (Li et al. 2025, arXiv:2509.24251):

    {"dataset": "flickr30k", "image": ["viscot/flickr30k/1.jpg"], "bboxes": [[0.382, 0.456, 0.718, 0.656]],
     "conversations": [{"from": "human", "value": "<image>\\nWhat does the child wear?\\nAnswer in one word."},
                       {"from": "gpt", "value": "<lvr>\\n<answer> Denim. </answer>"}]}

Every ``<lvr>`` stands for the latents of one box, in order. Boxes are x1, y1, x2, y2, as fractions of the image's
sides. The released training code drops whatever stands before the first ``<lvr>``; here it is kept, as `answer_before`.
It puts the image where ``<image>`` stands; an `Item` has its image before its question.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from prismlens.data.rows import excerpt
from prismlens.errors import ItemError
from prismlens.types import Box, Item

IMAGE, LATENTS = "<image>", "<lvr>"
"""The placeholders of the image in the question, and of one box's latents in the answer."""

_FIELDS = {"image": (str, list), "conversations": (list,), "bboxes": (list,)}
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """One question, and what a model should write about it.

    Args:
        item: the question, an open one; options that its text lists stay in the text. `category` is the row's
            `dataset`, `group` its image; `meta` holds the row's further fields, and `reference`: the text inside
            ``<answer>``, or all of the text after the latents where there is no such tag.
        pieces: the text before, between and after the latents, one piece more than boxes; box i belongs to the latents
            between pieces i and i + 1. White space is the row's own.
        line: the row's line in the file, or its place in a JSON list; the first is 1.
    """

    item: Item
    pieces: tuple[str, ...]
    line: int

    @property
    def answer_before(self) -> str:
        """The text before the first latents, usually empty."""
        return self.pieces[0]

    @property
    def answer_after(self) -> str:
        """The text after the last latents."""
        return self.pieces[-1]


def parse_row(raw: object, stem: str, line: int, root: Path, *, must_exist: bool = False) -> TrainingRow:
    """The checked row.

    Args:
        raw: a line of JSON, or what it holds.
        stem: the file's name without its ending, for the id of a row that has none.
        line: where the row stands in its file; the first is 1.
        root: where relative image paths start.
        must_exist: whether to look for the image file, which is never opened.

    Raises:
        ItemError: the row is not in the form; the first line says what is wrong with it.
    """
    row = _object(raw)
    image = _only(row["image"], "image")
    if not isinstance(image, str) or "://" in image:
        raise ItemError(f"image: {image!r} is not the path of a file")
    question, pieces = _turns(row["conversations"])
    boxes = _boxes(row["bboxes"])
    if len(boxes) != len(pieces) - 1:
        raise ItemError(f"{len(pieces) - 1} {LATENTS} in the gpt turn and {len(boxes)} boxes")
    path = root / image
    if must_exist and not path.is_file():
        raise ItemError(f"no image file {path}")
    found = _ANSWER.findall(pieces[-1])
    rest = {key: value for key, value in row.items() if key not in {*_FIELDS, "id"}}
    item = Item(
        image=path,
        question=question,
        boxes=boxes,
        group=image,
        category=str(row.get("dataset") or ""),
        id=f"{stem}-{line}" if row.get("id") in (None, "") else str(row["id"]),
        meta={**rest, "reference": (found[-1] if found else pieces[-1]).strip()},
    )
    return TrainingRow(item, pieces, line)


def _object(raw: object) -> dict:
    """The row as a dict with all fields."""
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw.decode("utf-8-sig"))
        except ValueError as error:  # also what broken UTF-8 raises
            raise ItemError(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ItemError(f"a {type(raw).__name__} instead of an object")
    for name, kinds in _FIELDS.items():
        if name not in raw:
            raise ItemError(f"no field {name!r}; it has {', '.join(map(str, raw)) or 'none'}")
        if not isinstance(raw[name], kinds):
            raise ItemError(f"{name}: {excerpt(raw[name])} is a {type(raw[name]).__name__}")
    return raw


def _only(value: object, name: str) -> object:
    """The value, or the only element of a list."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ItemError(f"{name}: {len(value)} images, and an item has one")
        return value[0]
    return value


def _turns(turns: list) -> tuple[str, tuple[str, ...]]:
    """The question without its placeholder, and the answer cut at the latents."""
    speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in turns]
    if speakers != ["human", "gpt"]:
        raise ItemError(f"conversations: turns of {speakers}, and one of human, then one of gpt are read")
    if not all(isinstance(turn.get("value"), str) for turn in turns):
        raise ItemError("conversations: a turn without text in `value`")
    asked, told = (turn["value"] for turn in turns)
    if IMAGE in told:
        raise ItemError(f"{told.count(IMAGE)} {IMAGE} in the gpt turn")
    if asked.count(IMAGE) != 1 or LATENTS in asked:
        raise ItemError(f"{asked.count(IMAGE)} {IMAGE} and {asked.count(LATENTS)} {LATENTS} in the human turn")
    question = "\n".join(filter(None, (part.strip("\n") for part in asked.split(IMAGE))))
    pieces = tuple(told.split(LATENTS))
    if not question.strip() or not pieces[-1].strip():
        raise ItemError("an empty question" if not question.strip() else f"no answer after the last {LATENTS}")
    return question, pieces


def _boxes(boxes: list) -> tuple[Box, ...]:
    """One box, a list of them, or such a list inside a list for the one image."""
    given = boxes
    if len(boxes) == 4 and not any(isinstance(box, list) for box in boxes):
        boxes = [boxes]
    if len(boxes) == 1 and isinstance(boxes[0], list) and any(isinstance(box, list) for box in boxes[0]):
        boxes = boxes[0]
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ItemError(f"bboxes: {box!r} is not x1 < x2 and y1 < y2, in fractions from 0 to 1")
    if not boxes:
        raise ItemError(f"bboxes: no box in {given!r}")
    return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)
