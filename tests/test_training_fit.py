"""What the slots are fed, where the gradient goes, and what a training run may and may not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prismlens.training import fit
from prismlens.training.fit import FORWARDS, Pool, forced_pass, own_pass, sample_batch, train, uninformative
from prismlens.training.sequences import IGNORE, Batch
from prismlens.training.tower import scene_features
from prismlens.training.variants import VARIANTS, Lesson, Variant
from tests.test_training_sequences import STEPS, Case, alone, case_of, columns, model_of, relative, replayed, scene_on

RNG = np.random.default_rng(0)
SHORT = Lesson(3, lam=1.0, scenes=3, mix=(("attribute", 1), ("relation", 1)))


@pytest.fixture(scope="module", params=["lvr", "slot", "bottleneck", "bypass"])
def case(request) -> Case:
    return case_of(request.param)


@torch.no_grad()
def test_training_through_its_own_latents_is_inference(case):
    batch = case.batch
    out = own_pass(case.model, batch, RNG)
    for row, q in case.places:
        run = alone(case, row, q, free=True)
        assert relative(out.sources[row, q :: batch.questions], run.latents[0]) < 1e-5
        assert relative(out.states[row, columns(batch, row, q)], replayed(case, run).hidden[0]) < 1e-5
    assert relative(out.sources, batch.targets) > 0.1, "the targets would not have passed this test"


@torch.no_grad()
def test_forcing_the_models_own_latents_gives_the_states_of_the_loop(case):
    batch, valid = case.batch, case.batch.unrolled.valid
    own = own_pass(case.model, batch, RNG)
    again = forced_pass(case.model, batch, own.sources)
    assert relative(again.states[valid], own.states[valid]) < 1e-5
    for layer, states in own.after.items():
        assert relative(again.after[layer][valid], states[valid]) < 1e-5
    assert relative(again.sources, own.sources) < 1e-5
    taught = forced_pass(case.model, batch, batch.targets)
    assert relative(taught.states[valid], own.states[valid]) > 1e-3


@torch.no_grad()
def test_early_states_are_those_after_the_second_layer():
    case = case_of("lvr")
    layers = case.model.model.language_model.layers
    seen: list[torch.Tensor] = []
    handle = layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = forced_pass(case.model, case.batch, case.batch.targets)
    handle.remove()
    assert torch.equal(out.after[fit.FACTS_LAYER], seen[0])
    assert not layers[1]._forward_hooks, "the pass takes its own hook away"


def feedback_gradient(case: Case, way: str) -> torch.Tensor:
    """Gradient of question 0's last source, in row 0, with respect to the final states of every prompt column."""
    seen: list[torch.Tensor] = []
    norm = case.model.model.language_model.norm
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        out = FORWARDS[way](case.model, case.batch, np.random.default_rng(0))
    finally:
        handle.remove()
    last = out.sources[0, (STEPS - 1) * case.batch.questions]
    # A norm's output has a fixed length: its square would have no gradient. Any one direction has.
    return torch.autograd.grad(last @ torch.linspace(-1, 1, len(last)), seen[0])[0]


def test_the_gradient_runs_through_the_loop_and_stays_within_its_question(case):
    first = case.batch.sources[:, : case.batch.questions]
    grad = feedback_gradient(case, "own")
    assert grad[0, first[0, 0]].norm() > 1e-4
    grad[0, first[0, 0]] = 0
    assert not grad.any(), "no other state is fed to this question's latents"


@pytest.mark.parametrize("way", ["target", "uninformative"])
def test_with_given_latents_no_gradient_runs_through_the_loop(way: str):
    case = case_of("lvr")
    grad = feedback_gradient(case, way)
    column = int(case.batch.sources[0, (STEPS - 1) * case.batch.questions])
    assert grad[0, column].any(), "the state itself is taught"
    grad[0, column] = 0
    assert not grad.any()


def fed(batch: Batch, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return uninformative(batch, np.random.default_rng(seed))


def test_uninformative_inputs_do_not_depend_on_the_rows_own_targets():
    batch = case_of("slot").batch
    for seed in range(10):
        for row in range(len(batch.targets)):
            changed = batch.targets.clone()
            changed[row] = torch.randn_like(changed[row])
            before, after = fed(batch, seed), fed(replace(batch, targets=changed), seed)
            assert torch.equal(before[row], after[row])


def test_uninformative_inputs_are_zeros_noise_and_other_scenes_targets_in_equal_parts():
    batch = case_of("slot").batch
    kinds = {"zero": 0, "other": 0, "noise": 0}
    for seed in range(60):
        for row, vectors in enumerate(fed(batch, seed)):
            same = (vectors[:, None] == batch.targets.flatten(0, 1)).all(-1).unflatten(1, batch.targets.shape[:2])
            assert not same[:, row].any()
            zero, other = (vectors == 0).all(-1), same.any(-1).any(-1)
            kinds["zero"] += int(zero.sum())
            kinds["other"] += int(other.sum())
            kinds["noise"] += int((~zero & ~other).sum())
    total = sum(kinds.values())
    assert all(abs(count / total - 1 / 3) < 0.04 for count in kinds.values()), kinds


def pool_of(model, processor, count: int = 6) -> Pool:
    scenes = [scene_on(3, 3, seed) for seed in range(count)]
    return Pool(scenes, scene_features(model, processor, scenes))


def trained(lessons: tuple[Lesson, ...], *, seed: int, variant: str = "lvr", start: int = 0):
    """A fresh model before and after a short run, and its log."""
    model, processor = model_of(variant, start)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Variant("trial", "", lessons, VARIANTS[variant].latents, VARIANTS[variant].visibility)
    log = train(model, processor, pool_of(model, processor), recipe, seed=seed)
    return model, before, log


@pytest.mark.parametrize("inputs", ["target", "uninformative", "own"])
def test_a_run_is_its_seed(inputs: str):
    lesson = replace(SHORT, inputs=inputs)
    first, again, other = (trained((lesson,), seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("variant", ["bottleneck", "sft"])
def test_a_run_teaches_every_part_of_the_language_model_and_leaves_the_tower_alone(variant: str):
    model, before, log = trained((replace(SHORT, lam=0.0), SHORT), seed=0, variant=variant)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith("model.visual."), name
    assert not model.training
    assert [entry["step"] for entry in log] == [0, 2, 0, 2]
    aligned = [False, False, True, True] if variant == "bottleneck" else [False] * 4
    assert ["align" in entry for entry in log] == aligned


def test_text_and_alignment_losses_fall_when_a_few_scenes_are_repeated():
    _, _, log = trained((Lesson(40, lam=1.0, scenes=4, mix=(("attribute", 2),)),), seed=0)
    assert log[-1]["text"] < log[0]["text"] / 2
    assert log[-1]["align"] < log[0]["align"]


def test_the_words_head_reads_each_questions_answer_off_its_own_slots():
    case = case_of("slot")
    heads = fit.Heads(128, case.model.config.text.vocab_size)
    lesson = replace(SHORT, inputs="target", words=True)
    parts = fit.losses(case.model, heads, case.batch, lesson, RNG)
    with torch.no_grad():
        out = forced_pass(case.model, case.batch, case.batch.targets)
    tokenizer, surprises = case.processor.tokenizer, []
    for row, q in case.places:
        word = tokenizer(f" {case.questions[row][q].content}")["input_ids"][0]
        assert case.batch.words[row, q] == word
        slots = (case.batch.unrolled.steps[row] >= 0) & (case.batch.blocks[row] == q)
        scores = heads.words(out.after[fit.WORDS_LAYER][row, slots]).log_softmax(-1)
        surprises.append(-scores[:, word])
    assert parts["words"].item() == pytest.approx(torch.cat(surprises).mean().item(), rel=0.02), "bfloat16"


def test_states_after_a_layer_are_what_that_layer_returns():
    case = case_of("lvr")
    seen: list[torch.Tensor] = []
    layer = case.model.model.language_model.layers[fit.WORDS_LAYER - 1]
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        out = forced_pass(case.model, case.batch, case.batch.targets)
    finally:
        handle.remove()
    assert torch.equal(out.after[fit.WORDS_LAYER], seen[0])
    assert not torch.equal(out.after[fit.FACTS_LAYER], seen[0])
    assert not layer._forward_hooks, "the collecting hooks are gone"


@pytest.mark.parametrize("lam", [0.5, 3.0])
def test_the_loss_is_text_plus_half_of_facts_plus_lambda_times_alignment(lam: float, monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []

    def one_of_each(model, *args: object) -> dict[str, torch.Tensor]:
        unit = model.get_input_embeddings().weight.sum() * 0 + 1
        unit.register_hook(lambda grad: seen.append(float(grad)))
        return {"text": unit * 1, "facts": unit * 10, "align": unit * 100}

    monkeypatch.setattr(fit, "losses", one_of_each)
    trained((replace(SHORT, lam=lam),), seed=0)
    assert seen == pytest.approx([1 + 5 + 100 * lam] * 3)


def test_losses_are_float32_although_the_forward_runs_in_bfloat16():
    case = case_of("lvr")
    heads = fit.Heads(128, case.model.config.text.vocab_size)
    parts = fit.losses(case.model, heads, case.batch, SHORT, RNG)
    assert set(parts) == {"text", "facts", "align"} and {value.dtype for value in parts.values()} == {torch.float32}
    with torch.no_grad():
        out = forced_pass(case.model, case.batch, case.batch.targets)
    exact = (out.sources - case.batch.targets).square().mean()
    assert abs(parts["align"] - exact) < 0.02 * exact


def test_a_loss_that_is_not_finite_names_the_lesson_and_the_step(monkeypatch: pytest.MonkeyPatch):
    model, processor = model_of("lvr")
    pool = pool_of(model, processor)
    calls = [0]
    real = fit.losses

    def failing(*args) -> dict[str, torch.Tensor]:
        calls[0] += 1
        parts = real(*args)
        return {**parts, "text": parts["text"] * (float("nan") if calls[0] == 5 else 1.0)}

    monkeypatch.setattr(fit, "losses", failing)
    with pytest.raises(FloatingPointError, match="trial 2: the loss is nan at step 1"):
        train(model, processor, pool, Variant("trial", "", (SHORT, SHORT)), seed=0)
    assert all(value.isfinite().all() for value in model.state_dict().values()), "the step was not taken"


def test_weights_that_are_not_finite_stop_the_first_step():
    model, processor = model_of("lvr")
    pool = pool_of(model, processor)
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="trial 1: the loss is nan at step 0"):
        train(model, processor, pool, Variant("trial", "", (SHORT,)), seed=0)


def test_a_batch_has_the_lessons_scenes_and_questions():
    model, processor = model_of("lvr")
    pool = pool_of(model, processor)
    lesson = replace(SHORT, scenes=5, mix=(("attribute", 3), ("relation", 2)))
    batch = sample_batch(model, processor, pool, lesson, np.random.default_rng(0), STEPS)
    assert (len(batch.labels), batch.questions, batch.targets.shape[1]) == (5, 5, 5 * STEPS)
    assert ((batch.labels != IGNORE).sum(1) > 5 * 5).all()
    assert not torch.isin(batch.labels, torch.tensor([model.config.lvr_id, model.config.image_token_id])).any()
