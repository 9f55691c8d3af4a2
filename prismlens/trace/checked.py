"""The first look at a list of items; knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from prismlens.errors import ItemError
from prismlens.types import Item


def checked_items(items: Sequence[Item]) -> Sequence[Item]:
    """The items, or an ItemError where there are none or two share an id."""
    ids = [item.id for item in items]
    repeated = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if not ids or repeated:
        raise ItemError(
            f"{len(ids)} items" + (f", of which several share the id {repeated[0]!r}" if repeated else ""),
            needed="at least one item, each with its own id",
            fix="pass a list through load_items, which fills in missing ids",
        )
    return items
