"""Where the published and the corrected procedure differ: each difference alone, on the sums that training makes."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from prismlens.errors import SettingError
from prismlens.training.batch import Batch, Pack
from prismlens.training.module import TERMS, TrainingModule
from prismlens.training.passes import forced_pass
from prismlens.training.prepare import Prepared, prepare
from prismlens.training.protocol import CHOICES, FAIR, PAPER, PROTOCOLS, Protocol
from prismlens.training.settings import TrainSettings
from prismlens.training.variants import VARIANTS
from tests.training_cases import HEADED, STEPS, base_of, group_of, lay, ready_for, some_items, variant_of

ALIGN, TEXT = TERMS.index("align"), TERMS.index("text")


def flipped(*names: str) -> Protocol:
    """The corrected protocol with some fields as published."""
    return replace(FAIR, **{name: CHOICES[name][1] for name in names})


def test_the_two_protocols_differ_in_every_field():
    assert PROTOCOLS == {"fair": FAIR, "paper": PAPER} and Protocol() == FAIR
    assert flipped(*CHOICES) == PAPER
    assert set(CHOICES) == {field.name for field in fields(Protocol)}
    assert all(getattr(FAIR, name) != getattr(PAPER, name) for name in CHOICES)


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_that_there_is_not_is_refused(name: str):
    with pytest.raises(SettingError, match=f"^{name} = 'x'\n  needed: {' or '.join(map(repr, CHOICES[name]))}"):
        replace(FAIR, **{name: "x"})


def test_budgets():
    assert [FAIR.latents(n, 8) for n in (0, 1, 2, 3)] == [(), (8,), (4, 4), (2, 3, 3)]
    # K is 8 for one stage and 16 for two: 32 latents of context and 16 of target, 48 in all
    assert [PAPER.latents(n, 8) for n in (0, 1, 2)] == [(), (8,), (32, 16)]
    assert flipped("budget").latents(2, 8) == (32, 16) and replace(PAPER, budget="equal").latents(2, 8) == (4, 4)
    assert all(sum(FAIR.latents(n, k)) == k for n in (1, 2, 3) for k in range(n, 20))
    with pytest.raises(SettingError, match="a budget of 1 latents for 2 stages\n  needed: at least one"):
        FAIR.latents(2, 1)


def batch_for(ready: Prepared) -> Batch:
    """Packs of different sizes: a group of two and one of a question about three boxes, against one question alone."""
    square, other, wide = some_items()
    first = Pack((group_of(ready, square), group_of(ready, wide[:1])), seed=1)
    return lay(ready, [first, Pack((group_of(ready, other),), seed=2)], waves=False)


def module_for(name: str, protocol: Protocol) -> tuple[TrainingModule, Batch, Tensor]:
    """The module, a batch, and the squared error of every slot, ``[batch, slot]``."""
    ready = ready_for(variant_of(name), protocol=protocol)
    batch = batch_for(ready)
    module = TrainingModule(ready.model, variant_of(name), TrainSettings(bf16=False, protocol=protocol, steps=1))
    features = batch.image_features
    assert features is not None
    targets = features[batch.slot_feature.clamp(min=0)]
    with torch.no_grad():
        out = forced_pass(ready.model, batch, features, targets)
    return module, batch, (out.sources - targets).square().mean(-1)


@torch.no_grad()
def means(module: TrainingModule, batch: Batch) -> Tensor:
    return module(batch) / module.counts(batch).clamp(min=1)


def by_part(batch: Batch, errors: Tensor) -> list[float]:
    """For every pack the sum, over its examples' images, boxes and stages, of the mean error."""
    out = []
    for row in range(len(errors)):
        valid = batch.slots[row]
        parts, own = batch.slot_part[row][valid], errors[row][valid]
        out.append(sum(float(own[parts == part].mean()) for part in parts.unique()))
    return out


@pytest.mark.parametrize("slots", ["budget", "box"])
@pytest.mark.parametrize("name", ["lvr", "p-lvr-2", "p-lvr-3"])
def test_the_corrected_alignment_is_one_mean_over_all_slots_whatever_the_variant(name: str, slots: str):
    module, batch, errors = module_for(name, replace(FAIR, slots=slots))
    assert means(module, batch)[ALIGN].item() == pytest.approx(errors[batch.slots].mean().item(), rel=1e-5)


@pytest.mark.parametrize("slots", ["budget", "box"])
def test_the_published_alignment_of_one_stage_is_one_mean_a_pack(slots: str):
    module, batch, errors = module_for("lvr", replace(PAPER, slots=slots))
    rows = [errors[row][batch.slots[row]].mean().item() for row in (0, 1)]
    assert means(module, batch)[ALIGN].item() == pytest.approx(sum(rows) / 2, rel=1e-5)
    fair = errors[batch.slots].mean().item()
    assert abs(sum(rows) / 2 - fair) > 1e-3 * fair, "the packs have different numbers of slots"


@pytest.mark.parametrize("name", ["p-lvr-2", "p-lvr-3"])
def test_the_published_alignment_of_several_stages_sums_a_mean_for_each_box_and_stage(name: str):
    module, batch, errors = module_for(name, PAPER)
    sums = by_part(batch, errors)
    assert means(module, batch)[ALIGN].item() == pytest.approx(sum(sums) / 2, rel=1e-5)
    fair = errors[batch.slots].mean().item()
    assert 4 * fair < sum(sums) / 2, "the confound: a sum over parts is several times a mean"
    n_boxes = max(len(item.boxes) for item in some_items()[0]) + len(some_items()[2][0].boxes)
    assert len(batch.slot_part[0][batch.slots[0]].unique()) == 2 * n_boxes


def test_each_text_mean_is_what_it_says():
    for protocol in (FAIR, flipped("text_mean"), PAPER):
        module, batch, _ = module_for("lvr", protocol)
        features = batch.image_features
        assert features is not None
        with torch.no_grad():
            out = forced_pass(module.lm, batch, features, features[batch.slot_feature.clamp(min=0)])
            surprise = -module.lm.lm_head(out.states).log_softmax(-1)
        rows = []
        for row in range(2):
            asked = batch.labels[row] >= 0
            rows.append(surprise[row, asked].gather(1, batch.labels[row, asked, None]).flatten())
        assert len(rows[0]) > 2 * len(rows[1])
        tokens, packs = torch.cat(rows).mean().item(), sum(row.mean().item() for row in rows) / 2
        expected = tokens if protocol.text_mean == "tokens" else packs
        assert means(module, batch)[TEXT].item() == pytest.approx(expected, rel=1e-5)
        assert abs(tokens - packs) > 1e-3 * tokens


@pytest.mark.parametrize("name", ["align_mean", "text_mean", "alignment_items"])
def test_each_mean_flipped_alone_moves_its_own_term(name: str):
    fair, batch, _ = module_for("p-lvr-2", FAIR)
    one, again, _ = module_for("p-lvr-2", flipped(name))
    before, after = means(fair, batch), means(one, again)
    moved = {TERMS[i] for i in range(len(TERMS)) if not torch.isclose(before[i], after[i], rtol=1e-4)}
    assert moved == {"align_mean": {"align"}, "text_mean": {"text"}, "alignment_items": set()}[name]


@pytest.mark.parametrize("name", ["slots", "budget", "markers"])
def test_each_choice_of_the_block_flipped_alone_changes_what_it_names(name: str):
    fair, one = (ready_for(VARIANTS["p-lvr-3"], protocol=p) for p in (FAIR, flipped(name)))

    def differs(read) -> bool:
        return read(fair) != read(one)

    changed = {
        "slots": differs(lambda r: r.slotting.latents is None),
        "budget": differs(lambda r: [stage["steps"] for stage in r.model.config.latent_stages]),
        "markers": differs(lambda r: [stage["close"] for stage in r.model.config.latent_stages]),
    }
    assert changed == {field: field == name for field in changed}
    assert one.slotting.openings == fair.slotting.openings, "sequences of training hold the markers either way"


def test_decoded_markers_leave_the_loop_nothing_to_force():
    for name in ("lvr", "p-lvr-3"):
        config = ready_for(VARIANTS[name], protocol=flipped("markers")).model.config
        assert not config.latent_close and all(not stage["close"] for stage in config.latent_stages)
    assert ready_for(VARIANTS["lvr"]).model.config.latent_close == [9, 10]


@pytest.mark.parametrize("bf16", [False, True])
def test_every_sum_is_float32(bf16: bool):
    ready = ready_for(HEADED)
    module = TrainingModule(ready.model, replace(HEADED, switch=1.0), TrainSettings(bf16=bf16))
    batch = batch_for(ready)
    sums = module(batch)
    assert sums.dtype == torch.float32 and sums[ALIGN] > 0
    exact = TrainingModule(ready.model, HEADED, TrainSettings(bf16=False))(batch)
    assert torch.isclose(sums[ALIGN], exact[ALIGN], rtol=0.03)


def test_a_half_precision_base_trains_with_exact_rotary_frequencies():
    base, processor = base_of()
    ready = prepare(base.to(torch.bfloat16), processor, HEADED, latent_steps=STEPS, protocol=FAIR)
    assert {p.dtype for p in ready.model.parameters()} == {torch.bfloat16}
    exact = base_of()[0].model.language_model.rotary_emb.inv_freq
    assert torch.equal(ready.model.model.language_model.rotary_emb.inv_freq, exact)
    module = TrainingModule(ready.model, replace(HEADED, switch=1.0), TrainSettings(bf16=False))
    sums = module(batch_for(ready))
    assert sums.dtype == torch.float32 and bool(sums.isfinite().all()) and sums[ALIGN] > 0
    sums.sum().backward()
    head = ready.model.lm_head.weight.grad
    assert head is not None and bool(head.abs().sum() > 0)


@torch.no_grad()
def test_diversity_is_read_at_the_free_tokens_and_switching_at_the_slots():
    name = "p-lvr-3"
    variant = replace(VARIANTS[name], switch=1.0)
    ready = ready_for(VARIANTS[name])
    batch = batch_for(ready)
    module = TrainingModule(ready.model, variant, TrainSettings(bf16=False))
    features = batch.image_features
    assert features is not None
    out = forced_pass(ready.model, batch, features, features[batch.slot_feature.clamp(min=0)])
    run, spread, switch = batch.unrolled, [], []
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 0)):
        own = batch.blocks[row] == number
        free = torch.nn.functional.normalize(out.states[row, own & (run.input_ids[row] == 14)], dim=-1)
        assert len(free) == 6
        spread.append(sum(float(free[i] @ free[j]) ** 2 for i in range(6) for j in range(6) if i != j) / 36)
        for column in (own & (run.steps[row] >= 0)).nonzero().flatten().tolist():
            leaves = torch.sigmoid(ready.model.lm_head(out.states[row, column])[9])
            ends = run.steps[row, column + 1] < 0
            switch.append(float(-torch.log(leaves if ends else 1 - leaves)))
    found = means(module, batch)
    assert found[TERMS.index("diversity")].item() == pytest.approx(sum(spread) / 4, rel=1e-4)
    assert found[TERMS.index("switch")].item() == pytest.approx(sum(switch) / len(switch), rel=1e-4)
    assert len(switch) == 4 * 4 and dict(zip(TERMS, module.weights(0), strict=True)) == {
        "text": 1.0, "align": 0.1, "diversity": 0.01, "switch": 1.0, "facts": 0.0, "words": 0.0,
    }  # fmt: skip


def test_pixels_give_the_sums_of_cached_features_and_the_tower_no_gradient():
    ready = ready_for(VARIANTS["lvr"])
    ready.model.model.visual.requires_grad_(True)
    cached = some_items()[0][:1], some_items()[2][:1]
    packs, bare = [], []
    for number, items in enumerate(cached):
        group = group_of(ready, items)
        prompt = ready.plain(items)
        packs.append(Pack((group,), seed=number))
        pixels = replace(group, features=None, pixels=prompt.pixel_values, grid_thw=prompt.image_grid_thw[0])
        bare.append(Pack((pixels,), seed=number))
    module = TrainingModule(ready.model, VARIANTS["lvr"], TrainSettings(bf16=False))
    sums = module(lay(ready, bare, waves=False))
    assert torch.allclose(sums, module(lay(ready, packs, waves=False)), rtol=1e-5)
    sums[ALIGN].backward()
    assert all(p.grad is None for p in ready.model.model.visual.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in ready.model.model.language_model.parameters())
