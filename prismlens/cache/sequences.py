"""Unrolled sequences as tensors and JSON, and back; items come back without their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from prismlens.errors import ResultsError
from prismlens.types import Box, Item
from prismlens.unrolled import Unrolled

NO_IMAGE = Path("an image that was in memory and is not stored with the activations")
"""Stands for the pixels of an item that had no file: whatever opens it says so."""


def tensors_of(unrolled: Unrolled) -> dict[str, Tensor]:
    """Every tensor, by the name of its field."""
    every = {one.name: getattr(unrolled, one.name) for one in fields(unrolled)}
    return {name: value for name, value in every.items() if isinstance(value, Tensor)}


def record_of(unrolled: Unrolled) -> dict[str, Any]:
    """Everything that is no tensor, as JSON values."""
    items = [item_record(item) for item in unrolled.items]
    return {"items": items, "n_prompt": unrolled.n_prompt, "stage_names": list(unrolled.stage_names)}


def restored(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Unrolled:
    """The sequences that `tensors_of` and `record_of` describe."""
    items = tuple(_item(one) for one in record["items"])
    known: dict[str, Any] = dict(tensors)
    return Unrolled(items=items, n_prompt=record["n_prompt"], stage_names=tuple(record["stage_names"]), **known)


def item_record(item: Item) -> dict[str, Any]:
    """An item as JSON values: its image by path, None where it was in memory.

    Raises:
        ResultsError: its `meta` holds something that is not a JSON value.
    """
    return {
        "id": item.id, "group": item.group, "category": item.category, "question": item.question,
        "options": list(item.options), "answer": item.answer, "boxes": [list(box) for box in item.boxes],
        "image": item.image.as_posix() if isinstance(item.image, Path) and item.image != NO_IMAGE else None,
        "meta": _plain(item.meta, item.id),
    }  # fmt: skip


def _plain(value: object, item_id: str) -> Any:
    """The value in JSON's own types; numbers must be finite, and keys text."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(entry, item_id) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, item_id) for entry in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    raise ResultsError(
        f"item {item_id!r} has {value!r} in its meta", needed="JSON values", fix="convert it to text or to a number"
    )


def _item(record: Mapping[str, Any]) -> Item:
    image = NO_IMAGE if record["image"] is None else Path(record["image"])
    boxes = cast(tuple[Box, ...], tuple(tuple(box) for box in record["boxes"]))
    same = ("question", "answer", "group", "category", "id", "meta")
    return Item(image=image, options=tuple(record["options"]), boxes=boxes, **{name: record[name] for name in same})
