"""Many questions in one training sequence against each question alone, through the processor and loop users run."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import Question, Scene, attribute_questions, relation_questions, sample_scene
from prismlens.models.loop import LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import END, LATENT_END, LVRProcessor, token_id
from prismlens.positions import box_tokens
from prismlens.training import fit
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.training.fit import forced_pass
from prismlens.training.objective import text_loss
from prismlens.training.sequences import (
    IGNORE,
    Batch,
    answer_text,
    collate,
    make_block,
    match_question,
    scene_questions,
)
from prismlens.training.tower import scene_features
from prismlens.training.variants import VARIANTS
from prismlens.types import LETTERS, Item
from prismlens.unrolled import Unrolled

NAMES = ("lvr", "slot", "bottleneck", "bypass", "sft")
STEPS = 4
CANVASES = ((3, 3), (4, 3), (3, 4))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def model_of(name: str, seed: int = 0) -> tuple[LVRForConditionalGeneration, LVRProcessor]:
    """An untrained model under a variant's configuration."""
    variant = VARIANTS[name]
    processor = tiny_processor(start=variant.latents)
    close = [token_id(processor.tokenizer, token) for token in (LATENT_END, END)]
    config = tiny_config(
        processor.tokenizer,
        latent_steps=STEPS,
        latent_entry="forced" if variant.latents else "none",
        latent_close=close if variant.latents else [],
        visibility=list(variant.visibility),
    )
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, seed)
    return model, processor


def scene_on(columns: int, rows: int, seed: int = 0) -> Scene:
    """The first scene of a seed that has this canvas."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample_scene(rng, "train")
        if (scene.columns, scene.rows) == (columns, rows):
            return scene


@dataclass(frozen=True, eq=False)
class Case:
    """A batch of three canvases with three questions each, and the same questions as ordinary items."""

    model: LVRForConditionalGeneration
    processor: LVRProcessor
    scenes: list[Scene]
    questions: list[list[Question]]
    items: list[list[Item]]
    features: list[torch.Tensor]
    batch: Batch

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(row, q) for row in range(len(self.items)) for q in range(len(self.items[0]))]


@cache
def case_of(name: str) -> Case:
    """The case of a variant; nothing changes its model."""
    model, processor = model_of(name)
    steps = STEPS if VARIANTS[name].latents else 0
    scenes = [scene_on(*canvas) for canvas in CANVASES]
    asked = [
        [*attribute_questions(s, np.random.default_rng(1))[2:4], relation_questions(s)[0], relation_questions(s)[-1]]
        for s in scenes
    ]
    asked = [[a, c, b] if row % 2 else [c, a, d] for row, (a, b, c, d) in enumerate(asked)]
    rng, twin = np.random.default_rng(5), np.random.default_rng(5)
    close = tuple(model.config.latent_close)
    blocks = [
        [make_block(processor, scene, q, rng, steps, close) for q in own]
        for scene, own in zip(scenes, asked, strict=True)
    ]
    items = [
        [q.item(scene, LETTERS[twin.integers(4)], twin, "alone") for q in own]
        for scene, own in zip(scenes, asked, strict=True)
    ]
    features = scene_features(model, processor, scenes)
    return Case(
        model, processor, scenes, asked, items, features,
        collate(model.config, processor, scenes, features, blocks, steps),
    )  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def case(request) -> Case:
    return case_of(request.param)


@pytest.fixture(scope="module")
def lvr() -> Case:
    return case_of("lvr")


@cache
def alone(case: Case, row: int, q: int, *, free: bool = False) -> Unrolled:
    """The item run by the latent loop, its text dictated: what inference does when it writes the training answer.

    Its latents are the training targets, or its own when the run is free.
    """
    model, item = case.model, case.items[row][q]
    held = case.batch.targets[row, q :: case.batch.questions][None] if case.batch.steps and not free else None
    words = case.processor.tokenizer(answer_text(item), add_special_tokens=False)["input_ids"]
    settings = LoopSettings.of(model.config, [words[-1]], max_new_tokens=len(words))
    silent = case.batch.steps + len(settings.latent_close)
    count = [0]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        out = plain_forward(model)(unrolled, n_queries, **inputs)
        logits = torch.zeros_like(out.logits)
        logits[..., words[max(count[0] - silent, 0)]] = 1.0
        count[0] += 1
        return StepOutput(out.hidden, logits)

    return unroll(model, case.processor([item]), settings, forward=forward, held=held)


@cache
@torch.no_grad()
def replayed(case: Case, run: Unrolled) -> StepOutput:
    """States and logits of a finished sequence, from pixels."""
    prompt = case.processor(run.items)
    features = case.model.image_features(prompt.pixel_values, prompt.image_grid_thw)
    return case.model.step(**replay_inputs(case.model, run), image_features=features)


def columns(batch: Batch, row: int, q: int) -> torch.Tensor:
    """The columns of one question: the shared prefix and its own."""
    own = (batch.blocks[row] == q) | (batch.blocks[row] == -1)
    return torch.nonzero(own & batch.unrolled.valid[row])[:, 0]


def test_every_question_has_the_tokens_roles_and_positions_of_inference(case):
    batch = case.batch
    for row, q in case.places:
        run, own = alone(case, row, q), columns(batch, row, q)
        assert batch.unrolled.input_ids[row, own].tolist() == run.input_ids[0].tolist()
        assert batch.unrolled.segments[row, own].tolist() == run.segments[0].tolist()
        assert torch.equal(batch.unrolled.position_ids[:, row, own], run.position_ids[:, 0])
        steps = batch.unrolled.steps[row, own]
        assert torch.where(steps < 0, -1, (steps - q) // batch.questions).tolist() == run.steps[0].tolist()
        if batch.steps:
            before = torch.nonzero(run.steps[0] >= 0)[:, 0] - 1
            assert batch.sources[row, q :: batch.questions].tolist() == own[before].tolist()


def test_labels_are_the_next_tokens_after_the_block_and_nothing_else(case):
    batch = case.batch
    for row, q in case.places:
        run, own = alone(case, row, q), columns(batch, row, q)
        ids = run.input_ids[0].tolist()
        first = run.n_prompt + batch.steps
        expected = [IGNORE] * (first - 1) + ids[first:] + [IGNORE]
        assert batch.labels[row, own].tolist() == expected
    assert not (batch.labels == case.model.config.lvr_id).any()
    assert (batch.labels[~batch.unrolled.valid] == IGNORE).all()


@torch.no_grad()
def test_every_question_has_the_states_and_the_loss_that_it_has_alone(case):
    batch = case.batch
    states = forced_pass(case.model, batch, batch.targets).states
    for row, q in case.places:
        run, own = alone(case, row, q), columns(batch, row, q)
        out = replayed(case, run)
        assert relative(states[row, own], out.hidden[0]) < 1e-5
        first = run.n_prompt + batch.steps
        by_hand = -out.logits[0, first - 1 : -1].log_softmax(-1).gather(1, run.input_ids[0, first:, None]).mean()
        trained = text_loss(case.model.lm_head(states[row, own])[None], batch.labels[row, own][None])
        assert abs(trained - by_hand) < 1e-5 * by_hand


@torch.no_grad()
@pytest.mark.parametrize("broken", ["block mask", "rules", "positions", "latent order"])
def test_the_comparison_sees_each_part_of_the_layout(broken: str, monkeypatch: pytest.MonkeyPatch):
    case = case_of("slot")
    batch, run = case.batch, case.batch.unrolled
    made = fit.masks
    targets = batch.targets
    if broken == "block mask":
        monkeypatch.setattr(fit, "masks", lambda *a, blocks, **k: made(*a, **k))
    elif broken == "rules":
        monkeypatch.setattr(fit, "masks", lambda u, rules, **k: made(u, (), **k))
    elif broken == "positions":
        later = torch.where(batch.blocks >= 0, run.position_ids + batch.blocks, run.position_ids)
        batch = replace(batch, unrolled=replace(run, position_ids=later))
    else:
        targets = targets.unflatten(1, (STEPS, -1)).transpose(1, 2).flatten(1, 2)
    states = forced_pass(case.model, batch, targets).states
    out = replayed(case, alone(case, 1, 1))
    assert relative(states[1, columns(batch, 1, 1)], out.hidden[0]) > 1e-3


def test_targets_are_merger_outputs_of_the_tokens_that_show_the_things_asked_about(lvr):
    batch = lvr.batch
    for row, q in lvr.places:
        scene, things = lvr.scenes[row], lvr.questions[row][q].things
        picture, wide = scene.render(), scene.columns * 2
        targets = batch.targets[row, q :: batch.questions].chunk(len(things))
        for thing, own in zip(things, targets, strict=True):
            tokens = [int(torch.nonzero((lvr.features[row] == target).all(-1))) for target in own]
            assert set(tokens) <= set(box_tokens(scene.box(thing), (scene.rows * 2, wide)))
            without = replace(scene, things=tuple(t for t in scene.things if t != thing)).render()
            shows = False
            for token in tokens:
                x, y = token % wide * 14, token // wide * 14
                assert (y // 28, x // 28) == (thing.row, thing.column)
                x1, y1, x2, y2 = thing.corners
                assert x < x2 and x1 < x + 14 and y < y2 and y1 < y + 14, "the token meets the thing's box"
                seen, empty = (np.asarray(image.crop((x, y, x + 14, y + 14))) for image in (picture, without))
                shows = shows or bool((seen != empty).any())
            assert shows, "some pixel of the thing lies under its targets"


def test_facts_stand_at_the_words_that_name_the_things(lvr):
    batch = lvr.batch
    for row, q in lvr.places:
        own = columns(batch, row, q)
        marked = [int(c) for c in own if batch.facts[row, c, 0] != IGNORE]
        question = lvr.questions[row][q]
        assert len(marked) == len(question.things)
        for column, thing in zip(marked, question.things, strict=True):
            word = lvr.processor.decode([int(batch.unrolled.input_ids[row, column])]).strip()
            assert word == (thing.color if question.kind == "shape" else thing.shape)
            named = [thing.row, thing.column, SHAPES.index(thing.shape), list(COLORS).index(thing.color)]
            assert batch.facts[row, column].tolist() == named


def test_scene_questions_come_in_the_numbers_asked_for_and_repeat_only_when_they_run_out():
    scene = scene_on(3, 3)
    have = 2 * len(scene.things)
    asked = scene_questions(scene, np.random.default_rng(0), {"attribute": have, "relation": 2, "match": 3})
    assert [q.category for q in asked] == ["direct_attributes"] * have + ["relative_position"] * 2 + ["reading"] * 3
    assert len({q.text for q in asked[:have]}) == have
    again = scene_questions(scene, np.random.default_rng(0), {"attribute": have + 1})
    assert len(again) == have + 1 and {q.text for q in again} == {q.text for q in asked[:have]}


def test_a_reading_question_does_not_name_its_answer_and_asks_for_the_letter_only():
    question = match_question(np.random.default_rng(0))
    assert question.text == "What is it?" and question.things == ()
    processor = tiny_processor(start=False)
    config = tiny_config(processor.tokenizer, latent_entry="none")
    scene = scene_on(3, 3)
    block = make_block(processor, scene, question, np.random.default_rng(1), 0, ())
    batch = collate(config, processor, [scene], [torch.zeros(36, 128)], [[block]], 0)
    asked = batch.labels[0][batch.labels[0] != IGNORE].tolist()
    assert asked == block.answer[1:], "the word itself is no target, everything after it is"
    assert len({question.content, *question.distractors}) == 4
