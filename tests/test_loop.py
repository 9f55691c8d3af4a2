"""The latent loop against slower, independent ways to the same numbers."""

from dataclasses import replace

import pytest
import torch

from prismlens.data.shapes import shapes
from prismlens.errors import SettingError
from prismlens.models.loop import LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import LVRProcessor
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.unrolled import Segment, Unrolled

STEPS = 3
ITEMS = shapes(7, seed=3)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def pair() -> tuple[LVRForConditionalGeneration, LVRProcessor]:
    processor = tiny_processor(start=True)
    config = tiny_config(processor.tokenizer, layers=3, latent_steps=STEPS, latent_close=[9, 10])
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, 0)
    return model, processor


@pytest.fixture(scope="module")
def settings(pair: tuple[LVRForConditionalGeneration, LVRProcessor]) -> LoopSettings:
    return LoopSettings.of(pair[0].config, [2], max_new_tokens=4)


def naive(model: LVRForConditionalGeneration, processor: LVRProcessor, item, columns: list[int | torch.Tensor]):
    """Final states of a whole sequence from transformers' own forward, without cache, masks or code of ours.

    `columns` are what follows the prompt: a token id, or a latent vector.
    """
    prompt = processor([item])
    embed = model.get_input_embeddings()
    features = torch.cat(
        tuple(model.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output)
    )
    embeds = embed(prompt.input_ids)[0]
    embeds[prompt.input_ids[0] == model.config.image_token_id] = features
    after = [embed(torch.tensor(c)) if isinstance(c, int) else c for c in columns]
    embeds = torch.cat((embeds, torch.stack(after))) if after else embeds
    ids = torch.cat((prompt.input_ids[0], torch.zeros(len(after), dtype=torch.long)))[None]
    types = (ids == model.config.image_token_id).int()
    positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=prompt.image_grid_thw)
    with torch.no_grad():
        out = model.model.language_model(inputs_embeds=embeds[None], position_ids=positions, use_cache=False)
    return out.last_hidden_state[0]


@torch.no_grad()
def replay(model: LVRForConditionalGeneration, processor: LVRProcessor, run: Unrolled) -> torch.Tensor:
    prompt = processor(run.items)
    features = model.image_features(prompt.pixel_values, prompt.image_grid_thw)
    return model.step(**replay_inputs(model, run), image_features=features).hidden


def test_the_loop_equals_transformers_run_from_scratch_at_every_step(pair, settings):
    model, processor = pair
    for item in ITEMS[:3]:
        run = unroll(model, processor([item]), settings)
        columns: list[int | torch.Tensor] = []
        for step in range(STEPS):
            expected = naive(model, processor, item, columns)[-1]
            assert relative(run.latents[0, step], expected) < 1e-5
            columns.append(expected)
        for id_ in run.input_ids[0, run.n_prompt + STEPS :].tolist():
            columns.append(id_)
        again = naive(model, processor, item, columns)
        written = run.input_ids[0, run.n_prompt + STEPS + 2 :]
        predicted = model.lm_head(again[run.n_prompt + STEPS + 1 : -1]).argmax(-1)
        assert written.tolist() == predicted.tolist()


def test_a_padded_batch_equals_each_item_alone(pair, settings):
    model, processor = pair
    together = unroll(model, processor(ITEMS), settings)
    assert len({int(v.sum()) for v in together.valid}) > 1, "the batch has to need padding"
    for row, item in enumerate(ITEMS):
        alone = unroll(model, processor([item]), settings)
        assert relative(together.latents[row], alone.latents[0]) < 1e-5
        assert together.input_ids[row, together.n_prompt :].tolist() == alone.input_ids[0, alone.n_prompt :].tolist()
        assert torch.equal(together.position_ids[:, row, together.valid[row]], alone.position_ids[:, 0])


@pytest.mark.parametrize("count", [1, 7])
def test_replay_gives_the_states_of_the_cached_loop(pair, settings, count: int):
    model, processor = pair
    states: list[torch.Tensor] = []

    def recording(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        out = plain_forward(model)(unrolled, n_queries, **inputs)
        states.append(out.hidden)
        return out

    run = unroll(model, processor(ITEMS[:count]), settings, forward=recording)
    loop = torch.cat(states, 1)
    again = replay(model, processor, run)[:, : loop.shape[1]]
    valid = run.valid[:, : loop.shape[1]]
    assert relative(again[valid], loop[valid]) < 1e-5


def test_nothing_is_left_over_from_the_previous_prompt(pair, settings):
    model, processor = pair
    first = unroll(model, processor([ITEMS[0]]), settings)
    unroll(model, processor(ITEMS[1:4]), settings)
    assert model.model.rope_deltas is None
    again = unroll(model, processor([ITEMS[0]]), settings)
    assert torch.equal(first.latents, again.latents) and torch.equal(first.input_ids, again.input_ids)


def scripted(model, script: dict[int, dict[int, int]]):
    """The model's forward, with some rows' next token dictated: ``{forward: {row: token}}``; else token 50."""
    count = [0]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        out = plain_forward(model)(unrolled, n_queries, **inputs)
        logits = torch.full_like(out.logits, -1.0)
        for row in range(len(logits)):
            logits[row, -1, script.get(count[0], {}).get(row, 50)] = 1.0
        count[0] += 1
        return replace(out, logits=logits)

    return forward


def test_rows_enter_when_they_emit_the_start_marker_and_the_others_are_reported(pair, settings):
    model, processor = pair
    start = model.config.lvr_start_id
    plain = LVRProcessor(processor.image_processor, processor.tokenizer, start=False)
    run = unroll(model, plain(ITEMS[:3]), settings, forward=scripted(model, {0: {0: start}, 2: {1: start}}))
    assert run.n_latents.tolist() == [STEPS, STEPS, 0]
    for row, entered in ((0, 0), (1, 2)):
        after = run.segments[row, run.n_prompt :].tolist()
        expected = [Segment.LEAD] * (entered + 1) + [Segment.LATENT] * STEPS
        assert after[: len(expected)] == expected
        first = (run.steps[row] == 0).nonzero()[0, 0]
        assert run.input_ids[row, first - 1] == start
        # forced end markers follow, and positions go on by one whatever the column holds
        assert run.input_ids[row, first + STEPS : first + STEPS + 2].tolist() == [9, 10]
        steps = run.position_ids[0, row, run.n_prompt :][run.valid[row, run.n_prompt :]]
        assert (steps.diff() == 1).all()
    assert (run.segments[2, run.n_prompt :][run.valid[2, run.n_prompt :]] == Segment.ANSWER).all()
    again = replay(model, plain, run)
    for row in (0, 1):
        column = (run.steps[row] == 0).nonzero()[0, 0]
        assert relative(again[row, column - 1], run.latents[row, 0]) < 1e-5


def test_an_item_may_enter_twice_and_gets_a_fresh_quota(pair, settings):
    model, processor = pair
    start = model.config.lvr_start_id
    long = replace(settings, max_new_tokens=3)
    run = unroll(model, processor(ITEMS[:1]), long, forward=scripted(model, {STEPS + 2: {0: start}}))
    assert run.n_latents.tolist() == [2 * STEPS]
    assert run.steps[0][run.steps[0] >= 0].tolist() == list(range(2 * STEPS))


def test_the_end_token_exit_leaves_when_the_logits_ask_for_it(pair, settings):
    model, processor = pair
    loose = replace(settings, latent_exit="end_token", latent_close=())
    end = model.config.lvr_latent_end_id
    run = unroll(model, processor(ITEMS[:2]), loose, forward=scripted(model, {2: {0: end}}))
    assert run.n_latents.tolist() == [2, STEPS]
    assert run.input_ids[0, run.n_prompt + 2] == end


def test_an_end_token_ends_its_row_only(pair, settings):
    model, processor = pair
    run = unroll(model, processor(ITEMS[:2]), settings, forward=scripted(model, {STEPS + 2: {0: 2}}))
    written = [(run.segments[row] == Segment.ANSWER).sum().item() - 2 for row in (0, 1)]
    assert written == [1, settings.max_new_tokens]
    assert run.segments[0, -1] == Segment.PAD


def test_held_latents_are_fed_instead_of_the_models_own(pair, settings):
    model, processor = pair
    clean = unroll(model, processor(ITEMS[:2]), settings)
    again = unroll(model, processor(ITEMS[:2]), settings, held=clean.latents)
    assert torch.equal(again.input_ids, clean.input_ids)
    other = torch.randn_like(clean.latents)
    run = unroll(model, processor(ITEMS[:2]), settings, held=other)
    assert torch.equal(run.latents, other)
    with pytest.raises(SettingError, match="held latents for 2 steps"):
        unroll(model, processor(ITEMS[:2]), settings, held=other[:, :2])


@pytest.mark.parametrize("bad", [{"latent_steps": 0}, {"latent_steps": -1}])
def test_a_budget_below_one_is_refused(pair, bad):
    with pytest.raises(SettingError, match="at least 1"):
        LoopSettings.of(pair[0].config, [2], max_new_tokens=4, **bad)
    with pytest.raises(SettingError, match="max_new_tokens = 0"):
        LoopSettings.of(pair[0].config, [2], max_new_tokens=0)
