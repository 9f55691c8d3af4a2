"""The frozen values that flow between the layers; knows nothing of models, files or statistics."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageOps

from prismlens.errors import ItemError
from prismlens.markup import block, columns, escaped, facts, picture, title

Box: TypeAlias = tuple[float, float, float, float]
"""Normalised ``(x1, y1, x2, y2)``, each in [0, 1], with x1 < x2 and y1 < y2."""

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, eq=False)
class Item:
    """One visual question.

    Args:
        image: a PIL image, or the path of one (opened when it is needed).
        question: the question's text, without options.
        options: the texts of the options, in the order A, B, C, ...; empty for an open question.
        answer: the letter of the right option (``"A"`` is ``options[0]``), or None where it is not known.
        boxes: normalised xyxy boxes of the objects that answer the question.
        group: items that share a scene or photograph share a group; resampling and splits go by group.
        category: for example ``"direct_attributes"``.
        id: unique inside one list of items.
        meta: further columns, JSON values only.

    Raises:
        ItemError: a box lies outside 0..1 or is inverted, or the answer is not the letter of an option.
    """

    image: Image.Image | Path
    question: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    boxes: tuple[Box, ...] = ()
    group: str = ""
    category: str = ""
    id: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "boxes", tuple(_checked_box(box, self.id) for box in self.boxes))
        if len(self.options) > len(LETTERS):
            raise ItemError(
                f"item {self.id!r} has {len(self.options)} options", needed=f"at most {len(LETTERS)} (A to Z)"
            )
        if not self.question.strip():
            raise ItemError(f"item {self.id!r} has an empty question", needed="some text", fix="give `question=`")
        if self.answer is not None and self.answer not in self.letters:
            raise ItemError(
                f"item {self.id!r} has the answer {self.answer!r} and {len(self.options)} options",
                needed=f"one of the letters {', '.join(self.letters) or '(none: the item has no options)'}",
                cause="the answer was given as the option's text, or the options were left out",
                fix="give the letter: 'A' is the first option",
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options: ``('A', 'B', ...)``."""
        return tuple(LETTERS[: len(self.options)])

    @property
    def content(self) -> str | None:
        """The text of the right option, or None where the answer is not known."""
        return None if self.answer is None else self.options[LETTERS.index(self.answer)]

    def _repr_html_(self) -> str:
        """The picture with its boxes, the question, the options, and whatever else is known, for a notebook."""
        options = {
            f"option {letter}": f"{text} ✓" if letter == self.answer else text
            for letter, text in zip(self.letters, self.options, strict=True)
        }
        rest = {"category": self.category or None, "group": self.group or None, **self.meta}
        return block(title(self.question, self.id), columns(self._picture(), facts({**options, **rest})))

    def _repr_text_(self) -> str:
        """The question with its options and what is known, for a terminal."""
        lines = [f"{self.id}: {self.question}"]
        lines += [
            f"  {letter} {text}{'  <- answer' if letter == self.answer else ''}"
            for letter, text in zip(self.letters, self.options, strict=True)
        ]
        boxes = "; ".join(", ".join(f"{value:.3f}" for value in box) for box in self.boxes)
        return "\n".join([*lines, *([f"  boxes {boxes}"] if boxes else [])])

    def _picture(self) -> str:
        """The image, or why it cannot be shown: looking at an item must not fail."""
        try:
            opened = self.image if isinstance(self.image, Image.Image) else Image.open(self.image)
            return picture(ImageOps.exif_transpose(opened).convert("RGB"), self.boxes, label=self.question)
        except OSError as error:
            return escaped(f"{self.image} cannot be shown: {error}")


def _checked_box(box: Box, item_id: str) -> Box:
    """The box as a tuple of four floats, or an ItemError that names the item."""
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise ItemError(
            f"item {item_id!r} has the box {box!r}", needed="four numbers x1, y1, x2, y2", fix="give normalised xyxy"
        ) from error
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ItemError(
            f"item {item_id!r} has the box {box!r}",
            needed="normalised xyxy: 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1",
            cause="pixels instead of fractions, or width and height instead of the second corner",
            fix="divide by the image's width and height, and give x2 = x1 + width, y2 = y1 + height",
        )
    return (x1, y1, x2, y2)
