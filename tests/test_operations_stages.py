"""Operations on blocks of several stages: skipped latents, statistics of a stage, and donors of the same stage."""

from __future__ import annotations

import pytest
import torch

from prismlens.errors import DonorError
from prismlens.interventions import DeleteKV, Edit, Mean, Noise, Repeat, Shuffle, Skip, Swap
from prismlens.positions import Role, latent
from prismlens.positions.places import places
from prismlens.trace import PrismModel, load
from prismlens.trace.skipping import shortened
from tests.test_stages import END, ITEMS, LAYOUTS, TOKENS, TWO, Case, by_hand, case_of, relative

CONTEXT, TARGET = 3, 2
FOUR = ITEMS[:4]


def model_of(name: str) -> PrismModel:
    case = case_of(name)
    model = load((case.model, case.processor))
    model.max_new_tokens = TOKENS
    return model


def layout_without(layout: list[dict], n: int) -> list[dict]:
    """The layout with the last n latents of the whole block taken away."""
    out = []
    for stage in reversed(layout):
        taken = min(n, stage["steps"])
        out.append({**stage, "steps": stage["steps"] - taken})
        n -= taken
    return out[::-1]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", ["two", "three"])
def test_the_last_latents_of_the_whole_block_go_first(name: str, n: int) -> None:
    """Against the reference loop of the stages, one item at a time and without a cache."""
    case: Case = case_of(name)
    run = model_of(name).edited(Edit(Skip(n, keep_positions=False))).generate(FOUR[:2])
    assert run.steps_taken.tolist() == [5 - n] * 2
    for row, item in enumerate(FOUR[:2]):
        expected = by_hand(case, item, layout_without(LAYOUTS[name], n))
        here = run.unrolled.valid[row].nonzero().flatten()[-len(expected.ids) :]
        ids = torch.where(run.unrolled.steps[row, here] >= 0, 0, run.unrolled.input_ids[row, here])
        assert ids.tolist() == expected.ids
        assert relative(run.latents[row], expected.latents) < 1e-4


@pytest.mark.parametrize("n", [1, 3, 5])
def test_with_positions_kept_the_rest_is_as_if_the_latents_were_hidden(n: int) -> None:
    model = model_of("two")
    skipped = model.edited(Edit(Skip(n))).generate(FOUR)
    role = latent if n == 5 else latent[5 - n :]
    hidden = model.edited(Edit(DeleteKV(), positions=role)).generate(FOUR)
    kept = ~role.mask(hidden.unrolled)
    for row in range(len(FOUR)):
        a, b = skipped.unrolled, hidden.unrolled
        assert a.input_ids[row, a.valid[row]].tolist() == b.input_ids[row, kept[row] & b.valid[row]].tolist()
        assert torch.equal(a.position_ids[:, row, a.valid[row]], b.position_ids[:, row, kept[row] & b.valid[row]])
    assert torch.allclose(skipped.option_logprobs.nan_to_num(9), hidden.option_logprobs.nan_to_num(9), atol=1e-4)


def test_the_settings_name_what_is_left() -> None:
    case = case_of("two")
    settings = case.settings
    left = shortened(settings, case.model.config, [Edit(Skip(3))])
    assert [(stage.steps, stage.gap) for stage in left.stages_of(case.model.config)] == [(2, 1), (0, 2)]
    assert left.latent_steps == 5 and shortened(settings, case.model.config, []) is settings


def fed(model: PrismModel, edit: Edit) -> torch.Tensor:
    """What a held run feeds at each step, read off a replay, ``[batch, step, d]``."""
    view = model.edited(edit)
    run = view.generate(FOUR)
    return view.run_with_cache(FOUR, "hook_latent", positions=latent, run=run)[1]["hook_latent"]


def test_statistics_of_a_stage_are_not_those_of_the_block() -> None:
    model = model_of("two")
    own = model.generate(FOUR).latents.double()
    context, target = own[:, :CONTEXT], own[:, CONTEXT:]
    means = torch.cat((context.mean((0, 1)).expand(CONTEXT, -1), target.mean((0, 1)).expand(TARGET, -1)))
    expected = {"step": own.mean(0), "stage": means, "all": own.mean((0, 1)).expand(5, -1)}
    for over, mean in expected.items():
        assert relative(fed(model, Edit(Mean(over), mode="held")).double(), mean.expand_as(own)) < 1e-5, over
    unit = fed(model, Edit(Noise(1.0), mode="held")).double() - own
    stds = torch.cat((context.flatten(0, 1).std(0).expand(CONTEXT, -1), target.flatten(0, 1).std(0).expand(TARGET, -1)))
    assert relative(fed(model, Edit(Noise(1.0, "std"), mode="held")).double() - own, unit * stds) < 1e-4


def test_shuffles_and_repeats_stay_inside_a_stage() -> None:
    model = model_of("two")
    own = model.generate(FOUR).latents
    repeated = fed(model, Edit(Repeat(), mode="held"))
    assert torch.equal(repeated, own[:, [0, 0, 0, 3, 3]])
    shuffled = fed(model, Edit(Shuffle(), mode="held"))
    assert torch.equal(shuffled[:, CONTEXT:], own[:, [4, 3]])
    for row in range(len(FOUR)):
        order = [int((own[row] == shuffled[row, step]).all(-1).nonzero()) for step in range(CONTEXT)]
        assert sorted(order) == [0, 1, 2] and all(a != b for a, b in enumerate(order))


@pytest.mark.parametrize(("role", "column"), [(latent.stage("target")[0], 3), (latent[-1], 4), (latent[1], 1)])
def test_donors_are_matched_by_stage_and_step(role: Role, column: int) -> None:
    model = model_of("two")
    own = model.generate(FOUR).latents
    view = model.edited(Edit(Swap(), positions=role, mode="held"))
    run = view.generate(FOUR)
    got = view.run_with_cache(FOUR, "hook_latent", positions=role, run=run)[1]["hook_latent"][:, 0]
    rows = [[item.id for item in FOUR].index(run.donors[0][item.id]) for item in FOUR]
    assert torch.equal(got, own[rows, column])


def test_places_count_within_a_stage_whatever_the_role() -> None:
    run = model_of("two").generate(FOUR[:1]).unrolled
    found = places(run, latent[-1].mask(run))[0][run.steps[0] >= 0].tolist()
    assert found == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]


def test_a_stage_that_was_skipped_has_no_place() -> None:
    with pytest.raises(DonorError, match="nothing that matches latent 0 of stage 1"):
        model_of("two").edited(Edit(Skip(1)), Edit(Swap(), positions=latent[-1])).generate(FOUR)
    assert [stage["name"] for stage in (*TWO[:1], END)] == ["context", "target"]
