"""Packed sequences against each example alone, through the latent loop and through transformers' own forward."""

from dataclasses import replace

import pytest
import torch

from prismlens.errors import SettingError
from prismlens.training import passes
from prismlens.training.batch import Pack
from prismlens.training.objective import token_losses
from prismlens.training.passes import forced_pass, own_pass
from prismlens.training.variants import VARIANTS
from prismlens.unrolled import Segment
from tests.training_cases import Case, alone, case_of, group_of, lay, relative, replayed, some_items

NAMES = ("lvr", "slot", "bottleneck", "bypass", "sft", "p-lvr-2", "p-lvr-3", "ruled", "headed")
LATENT = tuple(name for name in NAMES if name != "sft")
waves = pytest.mark.parametrize("waves", [False, True], ids=["plain", "waves"])
names = pytest.mark.parametrize("name", NAMES)
latent = pytest.mark.parametrize("name", LATENT)


def slot_order(steps: torch.Tensor) -> list[int]:
    """The numbers of an example's latents, counted from its first."""
    return steps[steps >= 0].argsort().argsort().tolist()


@names
@waves
def test_every_example_has_the_tokens_roles_stages_and_positions_of_inference(name: str, waves: bool):
    case = case_of(name, waves=waves)
    batch = case.batch.unrolled
    for row, number, _ in case.places:
        run, own = alone(name, row, number, free=False), case.columns(row, number)
        assert batch.input_ids[row, own].tolist() == run.input_ids[0].tolist()
        assert batch.segments[row, own].tolist() == run.segments[0].tolist()
        assert torch.equal(batch.position_ids[:, row, own], run.position_ids[:, 0])
        steps = batch.steps[row, own]
        assert (steps >= 0).tolist() == (run.steps[0] >= 0).tolist()
        assert slot_order(steps) == slot_order(run.steps[0])
        assert batch.stage_names == run.stage_names
        expected = run.stages[0] if name in ("p-lvr-2", "p-lvr-3", "ruled") else torch.where(steps >= 0, 0, -1)
        assert batch.stages[row, own].tolist() == expected.tolist()
        before = torch.nonzero(run.steps[0] >= 0)[:, 0] - 1
        assert case.batch.sources[row, case.slots(row, number)].tolist() == own[before].tolist()


@names
@waves
@torch.no_grad()
def test_every_example_has_the_states_and_logits_that_it_has_alone(name: str, waves: bool):
    case = case_of(name, waves=waves)
    out = forced_pass(case.model, case.batch, case.features, case.targets)
    for row, number, _ in case.places:
        run, own = alone(name, row, number, free=False), case.columns(row, number)
        expected = replayed(case.model, case.ready.processor, run)
        assert relative(out.states[row, own], expected.hidden[0]) < 1e-5
        assert relative(case.model.lm_head(out.states[row, own]), expected.logits[0]) < 1e-5
        before = torch.nonzero(run.steps[0] >= 0)[:, 0] - 1
        if len(before):
            assert relative(out.sources[row, case.slots(row, number)], expected.latent[0, before]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["lvr", "p-lvr-3"])
def test_one_slot_a_box_token_gives_what_transformers_gives_without_masks_or_packs(name: str):
    case = case_of(name, waves=False, box=True)
    model, run = case.model, case.batch.unrolled
    assert len({len(case.slots(row, number)) for row, number, _ in case.places}) > 2, "boxes of different sizes"
    out = forced_pass(model, case.batch, case.features, case.targets)
    language = model.model.language_model
    for row, number, item in case.places:
        own = case.columns(row, number)
        prompt = case.ready.plain([item])
        ids = run.input_ids[row, own][None]
        positions = model.rope_positions(ids, torch.ones_like(ids).bool(), prompt.image_grid_thw)
        assert torch.equal(run.position_ids[:, row, own], positions[:, 0])
        embeds = model.get_input_embeddings()(ids)
        features = model.image_features(prompt.pixel_values, prompt.image_grid_thw)
        embeds[ids == model.config.image_token_id] = features
        embeds[ids == model.config.lvr_id] = case.targets[row, case.slots(row, number)]
        states = language(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
        assert relative(out.states[row, own], states[0]) < 1e-5


@torch.no_grad()
def test_a_shared_prefix_gives_the_losses_of_separate_groups():
    case = case_of("p-lvr-3", waves=False)
    items = some_items()[0]
    together = lay(case.ready, [Pack((group_of(case.ready, items),))], waves=False)
    apart = lay(case.ready, [Pack(tuple(group_of(case.ready, [item]) for item in items))], waves=False)
    assert together.unrolled.shape[1] < apart.unrolled.shape[1], "the image is there once"
    losses = []
    for batch in (together, apart):
        features = batch.image_features
        out = forced_pass(case.model, batch, features, features[batch.slot_feature])
        own = batch.blocks >= 0
        losses.append(token_losses(case.model.lm_head(out.states[own]), batch.labels[own]))
        losses.append(out.sources.flatten(0, 1))
    assert relative(losses[0], losses[2]) < 1e-5 and relative(losses[1], losses[3]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("broken", ["blocks", "rules", "positions", "slots", "stages", "groups"])
def test_the_comparison_sees_each_part_of_the_layout(broken: str, monkeypatch: pytest.MonkeyPatch):
    name = "ruled" if broken in ("rules", "stages") else "lvr"
    case = case_of(name, waves=False)
    batch, targets, made = case.batch, case.targets, passes.masks
    if broken == "blocks":
        monkeypatch.setattr(passes, "masks", lambda *a, blocks, groups, **k: made(*a, **k))
    elif broken == "rules":
        monkeypatch.setattr(passes, "masks", lambda u, rules, **k: made(u, (), **k))
    elif broken == "positions":
        run = batch.unrolled
        later = torch.where(batch.blocks >= 0, run.position_ids + batch.blocks, run.position_ids)
        batch = replace(batch, unrolled=replace(run, position_ids=later))
    elif broken == "stages":
        none = torch.full_like(batch.unrolled.stages, -1)
        batch = replace(batch, unrolled=replace(batch.unrolled, stages=none))
    elif broken == "groups":
        swapped = torch.where(batch.groups >= 0, 1 - batch.groups, -1)
        batch = replace(batch, groups=swapped)
    else:
        targets = targets.flip(1)
    states = forced_pass(case.model, batch, case.features, targets).states
    expected = replayed(case.model, case.ready.processor, alone(name, 0, 1, free=False)).hidden[0]
    assert relative(states[0, case.columns(0, 1)], expected) > 1e-3


@latent
@torch.no_grad()
def test_training_through_its_own_latents_is_inference(name: str):
    case = case_of(name, waves=True)
    out = own_pass(case.model, case.batch, case.features, (2,))
    for row, number, _ in case.places:
        run, slots = alone(name, row, number, free=True), case.slots(row, number)
        assert relative(out.sources[row, slots], run.latents[0]) < 1e-5
        states = replayed(case.model, case.ready.processor, run).hidden[0]
        assert relative(out.states[row, case.columns(row, number)], states) < 1e-5
    assert relative(out.sources, case.targets) > 0.1, "the targets would not have passed this test"


@latent
@torch.no_grad()
def test_forcing_the_models_own_latents_gives_the_states_of_the_loop(name: str):
    case = case_of(name, waves=True)
    valid = case.batch.unrolled.valid
    own = own_pass(case.model, case.batch, case.features, (2, 3))
    again = forced_pass(case.model, case.batch, case.features, own.sources, (2, 3))
    assert relative(again.states[valid], own.states[valid]) < 1e-5
    for layer, states in own.after.items():
        assert relative(again.after[layer][valid], states[valid]) < 1e-5
    assert relative(again.sources, own.sources) < 1e-5
    taught = forced_pass(case.model, case.batch, case.features, case.targets)
    assert relative(taught.states[valid], own.states[valid]) > 1e-3


@torch.no_grad()
def test_both_layouts_force_the_same_latents_alike():
    plain, laid = case_of("p-lvr-3", waves=False), case_of("p-lvr-3", waves=True)
    assert len(plain.batch.cuts) == 1 and len(laid.batch.cuts) == 1 + STAGES_OF_P_LVR_3
    outs = [forced_pass(case.model, case.batch, case.features, case.targets) for case in (plain, laid)]
    for row, number, _ in plain.places:
        states = [out.states[row, case.columns(row, number)] for out, case in zip(outs, (plain, laid), strict=True)]
        assert relative(*states) < 1e-5


STAGES_OF_P_LVR_3 = 4 + 2
"""Waves after the prompts: two latents of context and two of target, one wave each; what lies between; the answer."""


def test_latents_cannot_be_unrolled_out_of_waves():
    case = case_of("lvr", waves=False)
    with pytest.raises(SettingError, match="a layout in waves"):
        own_pass(case.model, case.batch, case.features)


@torch.no_grad()
def test_states_after_a_layer_are_what_that_layer_returns():
    case = case_of("lvr", waves=False)
    layers = case.model.model.language_model.layers
    seen: list[torch.Tensor] = []
    handle = layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = forced_pass(case.model, case.batch, case.features, case.targets, (2, 3))
    handle.remove()
    assert torch.equal(out.after[2], seen[0]) and not torch.equal(out.after[3], seen[0])
    assert not layers[1]._forward_hooks, "the pass takes its own hook away"


def feedback_gradient(case: Case, own: bool) -> torch.Tensor:
    """Gradient of example 0's last source, in row 0, with respect to the final states of every prompt column."""
    seen: list[torch.Tensor] = []
    norm = case.model.model.language_model.norm
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        out = (
            own_pass(case.model, case.batch, case.features)
            if own
            else forced_pass(case.model, case.batch, case.features, case.targets)
        )
    finally:
        handle.remove()
    last = out.sources[0, case.slots(0, 0)[-1]]
    # A norm's output has a fixed length: its square would have no gradient. Any one direction has.
    return torch.autograd.grad(last @ torch.linspace(-1, 1, len(last)), seen[0])[0]


@pytest.mark.parametrize("name", ["lvr", "bottleneck", "p-lvr-2"])
def test_the_gradient_runs_through_the_loop_and_stays_within_its_example(name: str):
    case = case_of(name, waves=True)
    grad = feedback_gradient(case, own=True)
    first = int(case.batch.sources[0, case.slots(0, 0)[0]])
    assert grad[0, first].norm() > 1e-5
    grad[0, first] = 0
    assert not grad.any(), "no other state is fed to this example's latents"


def test_with_given_latents_no_gradient_runs_through_the_loop():
    case = case_of("lvr", waves=True)
    grad = feedback_gradient(case, own=False)
    column = int(case.batch.sources[0, case.slots(0, 0)[-1]])
    assert grad[0, column].any(), "the state itself is taught"
    grad[0, column] = 0
    assert not grad.any()


@torch.no_grad()
def test_rows_without_a_slot_have_no_source():
    case = case_of("lvr", waves=True)
    out = forced_pass(case.model, case.batch, case.features, case.targets)
    assert case.batch.slots.sum(1).tolist() == [16, 4]
    assert not out.sources[1, 4:].any() and out.sources[1, :4].any(-1).all()
    assert (case.batch.unrolled.segments == Segment.LATENT).sum(1).tolist() == [16, 4]


def test_the_rules_that_are_compared_are_there():
    assert {name for name in NAMES if case_of(name, waves=False).model.rules} == {
        "slot", "bottleneck", "bypass", "ruled",
    }  # fmt: skip
    assert not VARIANTS["lvr"].visibility
