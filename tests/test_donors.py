"""Donors: what every match obeys, that it does not depend on order, and the errors where nothing fits."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from PIL import Image

from prismlens.errors import DonorError, EditError
from prismlens.interventions import Swap, match_donors
from prismlens.types import Item

PICTURE = Image.new("RGB", (28, 28))
COLOURS = ("red", "green", "blue", "grey", "pink")


def made(n: int = 60) -> list[Item]:
    """Items in two categories, two a group, the right option at a letter that has nothing to do with its content."""
    draw = random.Random(0)
    items = []
    for i in range(n):
        options = tuple(draw.sample(COLOURS, 3))
        letter, category = draw.choice("ABC"), ("colour", "place")[i % 4 // 2]
        items.append(Item(PICTURE, "?", options, letter, group=f"g{i // 2}", category=category, id=f"item-{i}"))
    return items


POLICIES = [
    Swap(donor, image)
    for donor in ("any", "different-answer", "same-answer", "answer-in-options")
    for image in ("different", "any")
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_match_obeys_the_policy(policy: Swap) -> None:
    items = {item.id: item for item in made()}
    donors = match_donors(list(items.values()), policy, seed=0)
    assert list(donors) == list(items)
    assert donors.dropped == ()
    for name, other in donors.items():
        item, donor = items[name], items[other]
        assert donor.id != item.id
        assert donor.category == item.category
        assert policy.image == "any" or donor.group != item.group
        assert policy.donor != "different-answer" or donor.content != item.content
        assert policy.donor != "same-answer" or donor.content == item.content
        assert policy.donor != "answer-in-options" or donor.content in {*item.options} - {item.content}


def test_answers_are_compared_by_content_not_by_letter() -> None:
    def item(name: str, options: tuple[str, ...], letter: str) -> Item:
        return Item(PICTURE, "?", options, letter, group=name, category="c", id=name)

    same = [item("x", ("red", "blue"), "A"), item("y", ("blue", "red"), "B"), item("z", ("grey", "pink"), "A")]
    assert match_donors(same[:2], Swap("same-answer"), seed=0) == {"x": "y", "y": "x"}
    assert match_donors(same, Swap("different-answer"), seed=0)["x"] == "z"
    with pytest.raises(DonorError, match="item 'x'"):
        match_donors([same[0], same[2]], Swap("answer-in-options"), seed=0)


def test_the_order_of_the_items_changes_nothing() -> None:
    items = made()
    shuffled = random.Random(1).sample(items, len(items))
    assert match_donors(items, Swap(), seed=3) == match_donors(shuffled, Swap(), seed=3)


def test_the_seed_changes_the_donors_and_all_are_drawn() -> None:
    items = made(12)
    assert match_donors(items, Swap(), seed=0) != match_donors(items, Swap(), seed=1)
    drawn = Counter(match_donors(items, Swap(), seed=seed)["item-0"] for seed in range(400))
    assert set(drawn) == {"item-4", "item-5", "item-8", "item-9"}
    assert min(drawn.values()) > 60  # expected 100, standard deviation 8.7


def test_an_impossible_match_names_item_policy_and_counts() -> None:
    items = made(8)
    lonely = Item(PICTURE, "?", ("x", "y"), "A", group="g0", category="colour", id="lonely")
    with pytest.raises(DonorError) as caught:
        match_donors([*items, lonely], Swap("same-answer"), seed=0)
    text = str(caught.value)
    assert "Swap(donor='same-answer', image='different', pool=None)" in text
    assert "item 'lonely': other items: 8, same category 'colour': 4, image different: 2, donor same-answer: 0" in text


def test_drop_leaves_out_and_reports() -> None:
    items = made(20)
    lonely = Item(PICTURE, "?", ("x", "y"), "A", group="g", category="other", id="lonely")
    donors = match_donors([lonely, *items], Swap(), seed=0, on_missing="drop")
    assert donors.dropped == ("lonely",)
    assert set(donors) == {item.id for item in items}


def test_unknown_answers_missing_groups_and_repeated_ids_are_named() -> None:
    unknown = [Item(PICTURE, "?", id=name, group=name) for name in "ab"]
    assert match_donors(unknown, Swap(), seed=0) == {"a": "b", "b": "a"}
    for donor in ("same-answer", "different-answer"):
        with pytest.raises(DonorError, match="the item's own answer is not known"):
            match_donors(unknown, Swap(donor), seed=0)
    with pytest.raises(DonorError, match="have no `group`, so all count as the same image"):
        match_donors([Item(PICTURE, "?", id=name) for name in "ab"], Swap(), seed=0)
    with pytest.raises(DonorError, match="1 ids belong to more than one item: ''"):
        match_donors([Item(PICTURE, "?"), Item(PICTURE, "?")], Swap(), seed=0)
    with pytest.raises(DonorError, match="on_missing='skip'"):
        match_donors(unknown, Swap(), seed=0, on_missing="skip")


def test_donors_come_from_the_pool_alone() -> None:
    items, pool = made(60)[:8], made(60)[20:]
    donors = match_donors(items, Swap(), seed=0, pool=pool)
    assert set(donors) == {item.id for item in items} and set(donors.values()) <= {item.id for item in pool}
    assert donors != match_donors(items, Swap(), seed=0)
    with pytest.raises(DonorError, match="finds no donor for 8 of 8 items"):
        match_donors(items, Swap(), seed=0, pool=[])
    assert match_donors(items, Swap(), seed=0, pool=[], on_missing="drop").dropped == tuple(item.id for item in items)


def test_with_the_whole_as_the_pool_a_part_of_the_items_keeps_its_donors() -> None:
    """What a batch, or a process, gives its items does not depend on which others it has."""
    items = made()
    whole = match_donors(items, Swap("answer-in-options"), seed=3)
    for part in (items[:1], items[10:25], items[::-7]):
        again = match_donors(part, Swap("answer-in-options"), seed=3, pool=random.Random(0).sample(items, len(items)))
        assert again == {item.id: whole[item.id] for item in part}


def test_an_item_in_the_pool_is_not_its_own_donor_and_may_be_one_without_having_one() -> None:
    one, two = (Item(PICTURE, "?", ("red", "blue"), letter, group=letter, id=letter) for letter in "AB")
    outside = Item(PICTURE, "?", ("red", "x", "y"), "A", group="o", id="o")
    donors = match_donors([one, two, outside], Swap("answer-in-options"), seed=0, on_missing="drop")
    assert donors.dropped == ("o",) and "o" not in donors
    drawn = {match_donors([two], Swap("answer-in-options"), seed=s, pool=[one, two, outside])["B"] for s in range(20)}
    assert drawn == {"A", "o"}


def test_a_repeated_id_in_the_pool_is_refused() -> None:
    items = made(8)
    with pytest.raises(DonorError, match="1 ids belong to more than one item: 'item-7'"):
        match_donors(items[:4], Swap(), seed=0, pool=[*items, items[7]])


def test_anyone_may_be_the_donor_and_a_pool_is_drawn_first() -> None:
    items = made()
    policy = Swap("anyone", image="any", pool=8)
    donors = match_donors(items, policy, seed=3)
    assert len(set(donors.values())) == 8, "all of the pool is drawn from, and nobody else"
    by_id = {item.id: item for item in items}
    drawn = [match_donors(items, Swap("anyone", image="any"), seed=seed) for seed in range(9)]
    assert any(name == donor for one in drawn for name, donor in one.items()), "the item itself"
    assert any(by_id[name].category != by_id[donor].category for name, donor in donors.items())
    assert donors == match_donors(items[::-1], policy, seed=3)
    assert set(donors.values()) != set(match_donors(items, policy, seed=4).values())
    with pytest.raises(DonorError, match=r"draws from 60 items(.|\n)*at least 64"):
        match_donors(items, Swap("anyone", image="any", pool=64), seed=0)
    narrow = match_donors(items, Swap(pool=30), seed=0)
    assert len(set(narrow.values())) <= 30 and all(by_id[a].category == by_id[b].category for a, b in narrow.items())


@pytest.mark.parametrize("pool", [0, -1, True])
def test_a_pool_is_a_number_of_items(pool: int) -> None:
    with pytest.raises(EditError, match="a whole number of at least 1, or None"):
        Swap(pool=pool)
