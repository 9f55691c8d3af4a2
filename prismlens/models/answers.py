"""Reading an answer out of generated tokens: where it starts, and which option it chooses; knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prismlens.models.processor import LVRProcessor

_TAG = re.compile(r"<answer>\s*")
_CLOSE = "</answer>"
_BARE = re.compile(r"(?:\(([A-Z])\)|([A-Z])(?:[).:,]|\s*$))")


def answer_start(processor: LVRProcessor, ids: Sequence[int]) -> int | None:
    """Index of the first token of the answer's text.

    Inside ``<answer>`` where the tag was written, else anywhere: the first token that is neither a control token nor
    blank. None where there is no such token, as in ``<answer></answer>``.
    """
    whole = processor.decode(ids)
    ordinary = (i for i, token in enumerate(ids) if token not in processor.control_ids)
    tag = _TAG.search(whole)
    if tag is None:
        return next((i for i in ordinary if processor.decode([ids[i]]).strip()), None)
    if whole.startswith(_CLOSE, tag.end()):
        return None
    return next((i for i in ordinary if len(processor.decode(ids[: i + 1])) > tag.end()), None)


def chosen_letter(text: str, letters: Sequence[str]) -> str | None:
    """The option that a text chooses, or None where it chooses none.

    The first character inside ``<answer>``; without the tag, a letter with which the text begins, alone or set off by
    parentheses or punctuation: in "A red star" the A chooses nothing.
    """
    tag = _TAG.search(text)
    if tag is not None:
        found: str | None = text[tag.end() : tag.end() + 1].upper()
    else:
        bare = _BARE.match(text.strip())
        found = bare[1] or bare[2] if bare else None
    return found if found in tuple(letters) else None


def letter_ids(processor: LVRProcessor, letters: Sequence[str]) -> list[tuple[int, ...]]:
    """For each letter the ids of its one-token spellings: alone, and after a space."""
    spelled = [
        {tuple(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (letter, f" {letter}")}
        for letter in letters
    ]
    return [tuple(sorted(ids[0] for ids in forms if len(ids) == 1)) for forms in spelled]
