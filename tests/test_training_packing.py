"""Items in packs: every item once an epoch, within limits, the same for a seed; and what items cannot be trained on."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prismlens.data.shapes import shapes
from prismlens.data.viscot_row import TrainingRow
from prismlens.errors import ItemError, SettingError
from prismlens.training.batch import Group
from prismlens.training.item_packs import ItemPacks, plan_packs
from prismlens.training.settings import TrainSettings
from prismlens.training.sources import ItemSource, SceneSource
from prismlens.training.variants import VARIANTS, Phase, Variant
from prismlens.types import Item
from tests.training_cases import lay, ready_for

SETTINGS = TrainSettings(steps=2, batch=2, pack_items=2, pack_tokens=400, facts=0.0)
TWO_STEPS = replace(VARIANTS["lvr"], phases=(Phase(1), Phase(1)))


def epoch(lengths: list[int], items: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """The packs of the first epoch: those before the second one's first item has to come again."""
    planned = plan_packs(np.array(lengths), 3 * len(lengths), most_items=items, most_tokens=tokens, seed=seed)
    out: list[list[int]] = []
    while sum(map(len, out)) < len(lengths):
        out.append(planned[len(out)])
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 5), st.integers(50, 120), st.integers(0, 9)
)
def test_every_item_comes_once_an_epoch_and_no_pack_is_too_large(lengths, items: int, tokens: int, seed: int):
    packs = epoch(lengths, items, tokens, seed)
    assert Counter(i for pack in packs for i in pack) == Counter(range(len(lengths)))
    for pack, after in zip(packs, [*packs[1:], None], strict=True):
        assert 1 <= len(pack) <= items and sum(lengths[i] for i in pack) <= tokens
        if after is not None:
            full = len(pack) == items or sum(lengths[i] for i in pack) + lengths[after[0]] > tokens
            assert full, "closed only when the next item did not fit"


def test_epochs_have_orders_of_their_own_and_plans_begin_alike_whatever_their_length():
    lengths = np.full(8, 10)
    plan = plan_packs(lengths, 12, most_items=2, most_tokens=100, seed=0)
    epochs = [[i for pack in plan[start : start + 4] for i in pack] for start in (0, 4, 8)]
    assert all(sorted(one) == list(range(8)) for one in epochs) and len(set(map(tuple, epochs))) == 3
    assert plan_packs(lengths, 5, most_items=2, most_tokens=100, seed=0) == plan[:5]
    assert plan_packs(lengths, 12, most_items=2, most_tokens=100, seed=1) != plan


def test_packs_by_hand():
    lengths = np.array([60, 60, 30])
    for seed in range(5):
        order = np.random.default_rng([seed, 0, 0]).permutation(3).tolist()
        filled = {(0, 1): [[order[0]], [order[1], order[2]]], (0, 2): [[order[0], order[1]], [order[2]]]}
        expected = filled[0, 1] if 2 not in order[:2] else filled[0, 2]
        assert epoch([60, 60, 30], 4, 100, seed) == expected
        assert plan_packs(lengths, 2, most_items=4, most_tokens=100, seed=seed) == expected


def test_items_that_no_pack_can_hold_and_no_items_are_refused():
    with pytest.raises(ItemError, match="item number 1 needs 101 columns\n  needed: at most 100"):
        plan_packs(np.array([100, 101, 3]), 1, most_items=4, most_tokens=100, seed=0)
    with pytest.raises(ItemError, match="no items to train on"):
        plan_packs(np.array([], dtype=np.int64), 1, most_items=4, most_tokens=100, seed=0)


def test_a_pack_of_items_is_its_seed_and_its_number():
    def group(number: int) -> Group:
        return Group(((number,), (1,)), (), (1, 1))

    plan = plan_packs(np.full(5, 10), 8, most_items=2, most_tokens=100, seed=3)
    data = ItemPacks(group, plan, replace(TWO_STEPS, phases=(Phase(1), Phase(3))), 2, 3)
    assert len(data) == 8
    made = [data[i] for i in range(8)]
    again = [ItemPacks(group, plan, data.variant, 2, 3)[i] for i in reversed(range(8))][::-1]
    assert [(p.seed, p.phase) for p in made] == [(p.seed, p.phase) for p in again]
    assert [[g.prefix[0][0] for g in pack.groups] for pack in made] == plan
    assert [pack.phase for pack in made] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert len({pack.seed for pack in made}) == 8
    assert all(
        p.seed != q.seed
        for p, q in zip(made, (ItemPacks(group, plan, data.variant, 2, 4)[i] for i in range(8)), strict=True)
    )


def source(items: list, **kwargs) -> ItemSource:
    return ItemSource(items, "some", **kwargs)


def packs_of(rows: list, *, variant: Variant = TWO_STEPS, run: TrainSettings = SETTINGS, **kwargs) -> ItemPacks:
    ready = ready_for(variant, emitted=kwargs.get("writes_start", False))
    return source(rows, **kwargs).packs(ready, variant, run)


def test_a_source_packs_items_with_their_pixels_or_their_features(tmp_path: Path):
    items = shapes(5, seed=2)
    ready = ready_for(TWO_STEPS)
    args = (ready, TWO_STEPS, SETTINGS)
    bare, kept = source(items).packs(*args), source(items, cache=tmp_path).packs(*args)
    assert bare.packs == kept.packs and len(bare) == 4
    for index in range(4):
        pixels, features = (lay(ready, [data[index]], waves=False) for data in (bare, kept))
        assert torch.equal(pixels.unrolled.input_ids, features.unrolled.input_ids)
        assert pixels.image_features is None and features.pixels is None
        seen = ready.model.image_features(pixels.pixels, pixels.grid_thw)
        assert (seen - features.image_features).abs().max() < 1e-4
        assert pixels.ids == (tuple(items[i].id for i in bare.packs[index]),)
    columns = [sum(len(group) for group in kept[i].groups) for i in range(4)]
    assert max(columns) <= SETTINGS.pack_tokens


def row(*pieces: str, boxes: int = 1) -> TrainingRow:
    box = (0.2, 0.2, 0.6, 0.6)
    item = Item(Image.new("RGB", (84, 84)), "What does it wear?", boxes=(box,) * boxes, id="r")
    return TrainingRow(item, pieces, 7)


def test_rows_with_text_before_their_latents_need_a_model_that_opens_the_block():
    thinking = row(" It is red. ", "\n<answer> Denim. </answer>")
    with pytest.raises(ItemError, match=r"item 'r' has text before its latents: 'It is red\.'"):
        packs_of([thinking])
    example = packs_of([thinking], writes_start=True)[0].groups[0].examples[0]
    text = ready_for(TWO_STEPS).plain.tokenizer
    lead = text("It is red.")["input_ids"]
    at = len(example.parts[0].ids) - len(lead) - 1
    assert list(example.parts[0].ids[at:]) == [*lead, 7] and list(example.labels[at - 1 : at + len(lead)]) == [*lead, 7]
    assert example.parts[-1].ids == (9, 10, *text("\n<answer> Denim. </answer>")["input_ids"], 2)
    sft = replace(VARIANTS["sft"], phases=(Phase(2),))
    assert len(packs_of([thinking], variant=sft)[0].groups[0].examples[0].labels) > 0, "without latents it is text"


def test_a_model_that_opens_the_block_is_taught_to_where_nothing_comes_before():
    example = packs_of([row("", "<answer> Denim. </answer>")], writes_start=True)[0].groups[0].examples[0]
    at = len(example.parts[0].ids) - 1
    assert example.parts[0].ids[at] == 7 == example.labels[at - 1]
    given = packs_of([row("", "<answer> Denim. </answer>")])[0].groups[0].examples[0]
    assert given.labels[at - 1] < 0


def test_rows_that_cannot_be_trained_on_are_refused_by_name():
    with pytest.raises(ItemError, match=r"item 'r' \(line 7\) has text between its latents: ' and '"):
        packs_of([row("", " and ", "<answer> Denim. </answer>", boxes=2)])
    with pytest.raises(ItemError, match="item 'q' has no answer"):
        packs_of([replace(shapes(1, seed=0)[0], answer=None, id="q")])
    with pytest.raises(ItemError, match="item number 0 needs"):
        packs_of(shapes(1, seed=0), run=replace(SETTINGS, pack_tokens=20))
    with pytest.raises(ItemError, match="no items to train on"):
        packs_of([])


@pytest.mark.parametrize(
    ("variant", "run", "message"),
    [
        (TWO_STEPS, replace(SETTINGS, facts=0.5), "with facts = 0.5, on items"),
        (replace(TWO_STEPS, phases=(Phase(2, words=1.0),)), SETTINGS, "on items\n  needed: rendered scenes"),
        (replace(TWO_STEPS, phases=(Phase(2, mix=(("match", 1),)),)), SETTINGS, "on items"),
        (replace(TWO_STEPS, batch=48), SETTINGS, "batch = 2 for 'lvr'\n  needed: 48"),
    ],
)
def test_what_only_scenes_know_is_refused_on_items(variant: Variant, run: TrainSettings, message: str):
    with pytest.raises(SettingError, match=message):
        packs_of(shapes(2, seed=0), variant=variant, run=run)


def test_a_source_is_identified_by_its_items():
    items = shapes(3, seed=0)
    one = source(items).identity()
    assert one == source(list(items)).identity() and (one["kind"], one["count"]) == ("some", 3)
    assert one["digest"] != source(items[::-1]).identity()["digest"]
    assert one["digest"] != source([*items[:2], replace(items[2], id="other")]).identity()["digest"]
    assert SceneSource(10, 2).identity() == {"kind": "shapes", "count": 10, "seed": 2}


def test_scenes_make_the_same_packs_with_and_without_a_cache(tmp_path: Path):
    ready = ready_for(TWO_STEPS)
    run = replace(SETTINGS, batch=3)
    args = (ready, TWO_STEPS, run)
    bare, kept = SceneSource(4, 1).packs(*args), SceneSource(4, 1, tmp_path).packs(*args)
    for one, other in zip(bare.pool.features, kept.pool.features, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert [bare[i].seed for i in range(6)] == [kept[i].seed for i in range(6)]
    assert len(SceneSource(50, 1).packs(ready, replace(TWO_STEPS, batch=48), run)) == 2 * 48
