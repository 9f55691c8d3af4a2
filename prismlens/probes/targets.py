"""What a probe is asked to read: a label an item, from the item's own fields; runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import fields

from prismlens.errors import SettingError
from prismlens.types import Item

FIELDS = tuple(field.name for field in fields(Item) if field.name not in ("image", "meta", "boxes"))
DERIVED = ("content",)
ON_RARE = ("raise", "drop")


def item_column(items: Sequence[Item], name: str) -> list[str]:
    """A field of the items (``"answer"``, ``"category"``, ...), the right option's text, or a column of meta, as text.

    Raises:
        SettingError: no such column, or it is empty or not one value at some item.
    """
    known = name in FIELDS or name in DERIVED
    values = [getattr(item, name) if known else item.meta.get(name) for item in items]
    lacking = [item.id for item, value in zip(items, values, strict=True) if value is None]
    if lacking:
        columns = sorted({str(column) for item in items for column in item.meta})
        raise SettingError(
            f"{len(lacking)} of {len(items)} items have no {name!r}: {', '.join(map(repr, lacking[:5]))}",
            needed=f"a field ({', '.join((*FIELDS, *DERIVED))}) or a column of meta ({', '.join(columns) or 'none'})",
            cause="a misspelt name, or items whose answer is not known",
        )
    strange = [item.id for item, value in zip(items, values, strict=True) if not isinstance(value, Hashable)]
    if strange:
        raise SettingError(f"{name!r} of item {strange[0]!r} is not one value", needed="text, a number or a boolean")
    return [str(value) for value in values]


def without_rare(
    items: Sequence[Item], labels: Sequence[str], least: int, on_rare: str
) -> tuple[list[Item], dict[str, str]]:
    """The items whose label is frequent enough, and the ids of the others with the reason.

    Args:
        items: the items.
        labels: one an item.
        least: members that a class needs.
        on_rare: ``"raise"`` keeps all (a later check names the rare classes), ``"drop"`` leaves theirs out.

    Raises:
        SettingError: `on_rare` is neither, or no item is left.
    """
    if on_rare not in ON_RARE:
        raise SettingError(f"on_rare={on_rare!r}", needed=f"one of {', '.join(map(repr, ON_RARE))}")
    counts = Counter(labels)
    rare = {
        item.id: f"only {counts[label]} items have the label {label!r}"
        for item, label in zip(items, labels, strict=True)
        if on_rare == "drop" and counts[label] < least
    }
    if len(rare) == len(items) and rare:
        raise SettingError(
            f"each of {len(items)} items has a label of fewer than {least} items: "
            + ", ".join(f"{label!r} ({count})" for label, count in counts.most_common(8)),
            needed=f"a class of at least {least} items, as many as there are folds",
            cause="too few items for so many classes",
            fix="give more items, or probe a target with fewer classes",
        )
    return [item for item in items if item.id not in rare], rare
