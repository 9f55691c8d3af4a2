"""Chooses for each item the donor whose values it gets, from the items alone; knows no tensors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from prismlens.errors import DonorError
from prismlens.interventions.swap import Swap
from prismlens.types import Item

ON_MISSING = ("raise", "drop")
SHOWN = 5
"""How many items an error lists before it only counts the rest."""

ANYONE = "anyone"
"""The one policy under which the item itself, and items of other categories, may be the donor."""
SELF = "self"
"""The policy under which the item is its own donor."""

Fits = Callable[[Item, Item], bool]
"""Whether the second item may be the donor of the first."""


def _different_answer(item: Item, donor: Item) -> bool:
    return None not in (item.content, donor.content) and donor.content != item.content


def _same_answer(item: Item, donor: Item) -> bool:
    return item.content is not None and donor.content == item.content


def _answer_in_options(item: Item, donor: Item) -> bool:
    return _different_answer(item, donor) and donor.content in item.options


CONTENT: Mapping[str, Fits] = {
    "any": lambda item, donor: True,
    "different-answer": _different_answer,
    "same-answer": _same_answer,
    "answer-in-options": _answer_in_options,
    ANYONE: lambda item, donor: True,
    SELF: lambda item, donor: donor.id == item.id,
}
"""What each policy asks of the two answers. They are compared by content: letters are shuffled from item to item."""

IMAGE: Mapping[str, Fits] = {
    "any": lambda item, donor: True,
    "different": lambda item, donor: donor.group != item.group,
}
"""What each policy asks of the two images; items that share an image share a group."""


class DonorMap(dict[str, str]):
    """Item id to donor id, in the order of the items; ``dropped`` holds the ids of the items without a donor."""

    def __init__(self, pairs: Mapping[str, str], dropped: tuple[str, ...] = ()) -> None:
        super().__init__(pairs)
        self.dropped = dropped


def match_donors(
    items: Sequence[Item], policy: Swap, *, seed: int, pool: Sequence[Item] | None = None, on_missing: str = "raise"
) -> DonorMap:
    """A donor for each item: another item of the same category that fits the policy, drawn evenly from all that do.

    Under ``"anyone"`` it may be of any category, and the item itself; under ``"self"`` it is the item itself. A policy
    with a `pool` draws that many first.

    The donor of an item depends on the seed and on the pool, not on any order. Donors may serve twice.

    Args:
        items: the items, with different ids.
        policy: what to ask of the donor's answer and image.
        seed: another seed gives other donors.
        pool: whom to draw from; the items themselves by default.
        on_missing: ``"raise"``, or ``"drop"`` to leave out the items that nothing fits and list them in ``dropped``.

    Returns:
        Item id to donor id; a dict that also has ``dropped``.

    Raises:
        DonorError: nothing fits some item (with the number of candidates after each filter), ids repeat, or there are
            fewer items than the policy's pool wants.
    """
    if on_missing not in ON_MISSING:
        raise DonorError(f"on_missing={on_missing!r}", needed=f"one of {', '.join(map(repr, ON_MISSING))}")
    _refuse_repeated_ids(items)
    _refuse_repeated_ids(pool or ())
    donors = _pooled(sorted(items if pool is None else pool, key=lambda item: item.id), policy, seed)
    fitting = _fitting(items, donors, policy)
    lacking = [item for item in items if not fitting[item.id]]
    if lacking and on_missing == "raise":
        counts = {item.id: _candidates(item, donors, policy) for item in lacking}
        raise _impossible(lacking, counts, policy, len(items))
    pairs = {name: _drawn(name, found, seed) for name, found in fitting.items() if found}
    return DonorMap(pairs, tuple(item.id for item in lacking))


def _pooled(donors: list[Item], policy: Swap, seed: int) -> list[Item]:
    """As many of the donors as the policy's pool holds, drawn by a hash of each id, in the order of their ids."""
    if policy.pool is None:
        return donors
    if len(donors) < policy.pool:
        raise DonorError(
            f"{policy} draws from {len(donors)} items",
            needed=f"at least {policy.pool}",
            cause="the pool is larger than the list of items",
            fix="give more items, or a smaller pool",
        )
    drawn = sorted(donors, key=lambda item: _number(f"{seed}|pool|{item.id}"))[: policy.pool]
    return sorted(drawn, key=lambda item: item.id)


def _fitting(items: Sequence[Item], donors: Sequence[Item], policy: Swap) -> dict[str, list[Item]]:
    """Who may be drawn for each item: what `_candidates` leaves in the end, in one pass over the right category."""
    if policy.donor == SELF:
        by_id = {donor.id: donor for donor in donors}
        return {item.id: [by_id[item.id]] if item.id in by_id else [] for item in items}
    anyone, image, fits = policy.donor == ANYONE, IMAGE[policy.image], CONTENT[policy.donor]
    rooms: dict[str, list[tuple[Item, str | None]]] = {}
    for donor in donors:
        rooms.setdefault("" if anyone else donor.category, []).append((donor, donor.content))
    out = {}
    for item in items:
        room = rooms.get("" if anyone else item.category, [])
        answers = {content for content, donor in {text: one for one, text in room}.items() if fits(item, donor)}
        out[item.id] = [
            donor
            for donor, content in room
            if content in answers and (anyone or donor.id != item.id) and image(item, donor)
        ]
    return out


def _candidates(item: Item, pool: Sequence[Item], policy: Swap) -> list[tuple[str, list[Item]]]:
    """What is left of the pool after each filter, under the filter's name; the last is what may be drawn."""
    another: tuple[tuple[str, Fits], ...] = (
        ("other items", lambda item, donor: donor.id != item.id),
        (f"same category {item.category!r}", lambda item, donor: donor.category == item.category),
    )
    filters: tuple[tuple[str, Fits], ...] = (
        *(() if policy.donor in (ANYONE, SELF) else another),
        (f"image {policy.image}", IMAGE[policy.image]),
        (f"donor {policy.donor}", CONTENT[policy.donor]),
    )
    left, stages = list(pool), []
    for name, fits in filters:
        left = [donor for donor in left if fits(item, donor)]
        stages.append((name, left))
    return stages


def _drawn(name: str, donors: Sequence[Item], seed: int) -> str:
    """The id of one donor, by a hash that is the same in every process."""
    return donors[_number(f"{seed}|{name}") % len(donors)].id


def _number(text: str) -> int:
    """A number drawn by a hash of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _refuse_repeated_ids(items: Sequence[Item]) -> None:
    """A DonorError where two items have the same id."""
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise DonorError(
            f"{len(repeated)} ids belong to more than one item: {', '.join(map(repr, repeated[:SHOWN]))}",
            needed="an id of its own for each item",
            cause="the items were made without `id`, or lists were joined",
            fix="give each item an id",
        )


def _impossible(
    lacking: Sequence[Item], candidates: Mapping[str, list[tuple[str, list[Item]]]], policy: Swap, n: int
) -> DonorError:
    """The error that names the items, the policy, and how many candidates each filter left."""
    lines = []
    for item in lacking[:SHOWN]:
        counts = ", ".join(f"{name}: {len(left)}" for name, left in candidates[item.id])
        asked = policy.donor not in ("any", ANYONE, SELF)
        unknown = " (the item's own answer is not known)" if asked and item.answer is None else ""
        lines.append(f"item {item.id!r}{unknown}: {counts}")
    rest = f"; and {len(lacking) - SHOWN} more items" if len(lacking) > SHOWN else ""
    no_group = policy.image == "different" and all(item.group == "" for item in lacking)
    return DonorError(
        f"{policy} finds no donor for {len(lacking)} of {n} items: {'; '.join(lines)}{rest}",
        needed="at least one candidate after the last filter",
        cause="the items have no `group`, so all count as the same image" if no_group else "too few items of this kind",
        fix='give more items, set `group` on them, choose another policy, or pass on_missing="drop"',
    )
