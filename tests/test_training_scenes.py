"""Rendered scenes as packs: a pure function of seed and number, questions as asked for, facts where things are named."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import RELATIONS
from prismlens.errors import SettingError
from prismlens.positions import box_tokens
from prismlens.training.batch import Pack
from prismlens.training.examples import IGNORE
from prismlens.training.features import tower_features
from prismlens.training.scenes import MIX, Pool, ScenePacks, match_question, sample_scenes, scene_questions
from prismlens.training.variants import VARIANTS, Phase, Variant
from prismlens.types import Item
from prismlens.unrolled import Segment
from tests.training_cases import Prepared, lay, ready_for, scene_on

FEW = (("relation", 2), ("attribute", 1))
TWO = Variant("two", "", (Phase(3), Phase(2, mix=FEW)))


@cache
def pool() -> tuple[Prepared, Pool]:
    ready = ready_for(TWO)
    scenes = sample_scenes(6, 0)
    items = [Item(scene.render(), "-", id=str(i)) for i, scene in enumerate(scenes)]
    return ready, Pool(scenes, [value for value, _ in tower_features(ready.model, ready.plain, items)])


def packs(seed: int = 0, batch: int = 4, variant: Variant = TWO) -> ScenePacks:
    ready, scenes = pool()
    return ScenePacks(scenes, variant, ready.model.config, ready.plain, ready.slotting, batch, seed)


def content(pack: Pack) -> tuple:
    """All of a pack that can be compared."""
    return pack.phase, pack.seed, [
        (group.prefix, group.grid, group.features.sum().item(), [(e.parts[0].ids, e.labels, e.facts) for e in group.examples])
        for group in pack.groups
    ]  # fmt: skip


def test_a_pack_is_its_seed_and_its_number():
    data = packs()
    assert len(data) == 5 * 4
    forwards = [content(data[i]) for i in range(20)]
    assert [content(packs()[i]) for i in reversed(range(20))] == forwards[::-1]
    others = [content(packs(seed=1)[i]) for i in range(20)]
    assert all(one != other for one, other in zip(forwards, others, strict=True))


def test_every_step_is_drawn_anew_and_shows_each_scene_once():
    data, (_, scenes) = packs(), pool()
    places = {scenes.features[i].sum().item(): i for i in range(6)}
    steps = []
    for step in range(5):
        shown = [places[data[4 * step + i].groups[0].features.sum().item()] for i in range(4)]
        assert len(set(shown)) == 4
        steps.append(tuple(shown))
    assert len(set(steps)) == 5
    seeds = [data[i].seed for i in range(20)]
    assert len(set(seeds)) == 20 and max(seeds) > 2**55


def test_the_mix_is_the_phases_or_the_runs():
    data = packs()
    for index, phase, count in ((0, 0, sum(dict(MIX).values())), (11, 0, 5), (12, 1, 3), (19, 1, 3)):
        (group,) = data[index].groups
        assert (data[index].phase, len(group.examples)) == (phase, count)
    assert [len(example.facts) for example in data[12].groups[0].examples] == [2, 2, 1], "relations name two things"


def test_letters_are_drawn_evenly():
    data = packs(variant=replace(TWO, phases=(Phase(40),)))
    letters = Counter()
    ready, _ = pool()
    for index in range(len(data)):
        for example in data[index].groups[0].examples:
            letters[ready.plain.decode(example.parts[-1].ids).split("<answer>")[1][0]] += 1
    total = sum(letters.values())
    assert set(letters) == set("ABCD") and all(abs(n / total - 1 / 4) < 0.06 for n in letters.values())


def test_a_pool_smaller_than_a_step_is_refused():
    with pytest.raises(SettingError, match="a pool of 6 scenes\n  needed: at least 7"):
        packs(batch=7)


def test_no_pack_lies_beyond_the_last_step():
    with pytest.raises(SettingError, match="step 5"):
        packs()[20]


def test_facts_stand_at_the_words_that_name_the_things():
    ready, scenes = pool()
    data = packs(variant=replace(TWO, phases=(Phase(2, mix=(("attribute", 8), ("relation", 4))),)))
    names = {**{name: ("shape", i) for i, name in enumerate(SHAPES)}, **{n: ("color", i) for i, n in enumerate(COLORS)}}
    seen = Counter()
    for index in range(4):
        pack = data[index]
        features = pack.groups[0].features
        scene = next(s for s, f in zip(scenes.scenes, scenes.features, strict=True) if f is features)
        by_name = {**{t.shape: t for t in scene.things}, **{t.color: t for t in scene.things}}
        batch = lay(ready, [pack], waves=False)
        for column in (batch.facts[0, :, 0] != IGNORE).nonzero().flatten().tolist():
            word = ready.plain.decode([int(batch.unrolled.input_ids[0, column])]).strip()
            assert batch.unrolled.segments[0, column] == Segment.QUESTION
            thing = by_name[word]
            named = [thing.row, thing.column, SHAPES.index(thing.shape), list(COLORS).index(thing.color)]
            assert batch.facts[0, column].tolist() == named
            seen[names[word][0]] += 1
        assert sum(len(e.facts) for e in pack.groups[0].examples) == (batch.facts[0, :, 0] != IGNORE).sum()
    assert seen["shape"] and seen["color"]


def test_targets_are_merger_outputs_of_tokens_inside_the_box_of_the_thing_asked_about():
    scenes = pool()[1]
    data = packs(variant=replace(TWO, phases=(Phase(2, mix=(("attribute", 4),)),)))
    for index in range(4):
        pack = data[index]
        (group,) = pack.groups
        scene = next(s for s, f in zip(scenes.scenes, scenes.features, strict=True) if f is group.features)
        grid = (scene.rows * 2, scene.columns * 2)
        assert group.grid == grid and len(group.features) == grid[0] * grid[1]
        for example in group.examples:
            ((_, (row, column, *_)),) = example.facts
            (thing,) = [t for t in scene.things if (t.row, t.column) == (row, column)]
            slots = [token for part in example.parts for token in part.slots]
            assert slots and set(slots) <= set(box_tokens(scene.box(thing), grid))
            assert all((token // grid[1] // 2, token % grid[1] // 2) == (row, column) for token in slots)


def test_questions_come_in_the_numbers_asked_for_and_repeat_only_when_they_run_out():
    scene = scene_on(3, 3)
    have = 2 * len(scene.things)
    asked = scene_questions(scene, np.random.default_rng(0), {"attribute": have, "relation": 2, "match": 3})
    assert [q.category for q in asked] == ["direct_attributes"] * have + ["relative_position"] * 2 + ["reading"] * 3
    assert len({q.text for q in asked[:have]}) == have
    again = scene_questions(scene, np.random.default_rng(0), {"attribute": have + 1})
    assert len(again) == have + 1 and {q.text for q in again} == {q.text for q in asked[:have]}


def test_a_kind_of_question_that_there_is_not_is_refused():
    with pytest.raises(SettingError, match="of kind 'counting'\n  needed: attribute, relation or match"):
        scene_questions(scene_on(3, 3), np.random.default_rng(0), {"attribute": 1, "counting": 1})


def test_every_mix_of_the_shipped_models_can_be_asked():
    rng = np.random.default_rng(0)
    for variant in VARIANTS.values():
        for phase in variant.phases:
            mix = dict(phase.mix or MIX)
            assert len(scene_questions(scene_on(3, 3), rng, mix)) == sum(mix.values())


def test_a_reading_question_does_not_name_its_answer_and_asks_for_the_letter_only():
    for seed in range(20):
        question = match_question(np.random.default_rng(seed))
        assert question.text == "What is it?" and question.things == ()
        words = {question.content, *question.distractors}
        assert len(words) == 4 and any(words <= set(kind) for kind in (COLORS, SHAPES, RELATIONS.values()))
    scenes = pool()[1]
    sft = ready_for(VARIANTS["sft"])
    phases = (Phase(2, mix=(("match", 1),)),)
    data = ScenePacks(scenes, replace(TWO, phases=phases), sft.model.config, sft.plain, sft.slotting, 4, 0)
    (example,) = data[0].groups[0].examples
    asked = [label for label in example.labels if label != IGNORE]
    assert asked == list(example.parts[-1].ids)[1:], "the word itself is no target, everything after it is"
    assert example.first_word == -1 and not example.facts


def test_scenes_are_their_seed_and_split():
    assert sample_scenes(5, 3) == sample_scenes(5, 3) != sample_scenes(5, 4)
    assert {scene.split for scene in sample_scenes(20, 0)} == {"train"}
    assert {scene.split for scene in sample_scenes(20, 0, "validation")} == {"validation"}


def test_words_of_the_answer_stand_at_its_own_slots():
    ready, _ = pool()
    batch = lay(ready, [packs()[0], packs()[1]], waves=True)
    for row in range(2):
        for example in batch.blocks[row].unique().tolist():
            if example < 0:
                continue
            own = batch.blocks[row] == example
            answer = batch.unrolled.input_ids[row, own & (batch.unrolled.segments[row] == Segment.ANSWER)]
            steps = batch.unrolled.steps[row]
            assert batch.words[row, steps[own & (steps >= 0)]].unique().tolist() == [int(answer[2])]
    assert torch.equal(batch.words >= 0, batch.slots)
