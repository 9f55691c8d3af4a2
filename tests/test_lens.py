"""Lenses: the model's own prediction at the last layer, masses and cosines by hand, and what known mechanisms imply."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prismlens.data.shapes import shapes
from prismlens.errors import ItemError, RoleError, SettingError, SiteError
from prismlens.interventions import Edit, Zero
from prismlens.lens import (
    attention,
    attention_mass,
    enrichment,
    logit_lens,
    nearest_patches,
    sensitivity,
    variance_shares,
)
from prismlens.lens.attention import AttentionMass
from prismlens.lens.patches import NearestPatches
from prismlens.lens.sensitivity import between_items
from prismlens.models.answers import letter_ids
from prismlens.positions import answer, image, latent
from prismlens.sites import PER_LAYER
from tests.plain_hooks import LAYERS, STEPS, Twins, plain_run, reading, twins, whole

SCENES = shapes(6, seed=3)
HAS_PATTERN = "attn.hook_pattern" in PER_LAYER


@pytest.fixture(scope="module")
def pair() -> Twins:
    made = twins()
    made.traced.batch_size = 4
    # Untrained norms have a weight of 1, with which a norm that is passed twice does nothing the second time.
    weight = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    for model in (made.traced.hf, made.plain):
        model.model.language_model.norm.weight.data.copy_(weight)
    return made


# --- logit lens -------------------------------------------------------------------------------------------------------


def test_after_the_last_block_the_lens_is_the_models_own_prediction(pair: Twins):
    lens = logit_lens(pair.traced, SCENES, positions=latent | latent.end, top=3).rows
    with torch.no_grad():
        run, _ = plain_run(pair, SCENES)
        logprobs = pair.plain.step(**whole(pair, run)).logits.float().log_softmax(-1)
    last = lens[lens.depth == LAYERS]
    assert len(last) == len(SCENES) * (STEPS + 1)
    for row, item in enumerate(SCENES):
        columns = (latent.mask(run) | latent.end.mask(run))[row].nonzero().flatten()
        own = last[last["item"] == item.id]
        start = int(run.valid[row].nonzero()[0])
        assert own.column.tolist() == (columns - start).tolist()
        best = logprobs[row, columns].topk(3)
        for n, (_, line) in enumerate(own.iterrows()):
            assert line.top_logprobs == pytest.approx(best.values[n].tolist(), abs=1e-4)
            assert line.top == [pair.processor.decode([i]) for i in best.indices[n].tolist()]
            expected = [
                float(logprobs[row, columns[n], list(ids)].logsumexp(-1))
                for ids in letter_ids(pair.processor, item.letters)
            ]
            assert line.option_logprobs == pytest.approx(expected, abs=1e-4)
            assert line.choice == item.letters[int(np.argmax(expected))]
            assert line.correct == (line.choice == item.answer)


def test_inner_layers_pass_the_final_norm_and_fed_latents_do_not_pass_it_twice(pair: Twins):
    lens = logit_lens(pair.traced, SCENES, top=1).rows
    with torch.no_grad():
        run, _ = plain_run(pair, SCENES)
        with reading(pair.plain, ["blocks.1.hook_resid_post"]) as seen:
            out = pair.plain.step(**whole(pair, run))
        stream = seen["blocks.1.hook_resid_post"][0].double()
        weight = pair.plain.model.language_model.norm.weight.double()
        eps = pair.plain.config.text.rms_norm_eps
        normed = stream / (stream.square().mean(-1, keepdim=True) + eps).sqrt() * weight
        by_hand = (normed @ pair.plain.lm_head.weight.double().T).log_softmax(-1)
    mask = latent.mask(run)
    inner = lens[lens.depth == 2].top_logprobs.map(lambda top: top[0])
    assert inner.tolist() == pytest.approx(by_hand[mask].max(-1).values.tolist(), abs=1e-4)
    # What is fed at p is the final state of p - 1: unembedded it is what the model would have said there.
    before = torch.roll(mask, -1, 1)
    said = out.logits[before].float().log_softmax(-1).max(-1).values
    fed = lens[lens.depth == 0].top_logprobs.map(lambda top: top[0])
    assert fed.tolist() == pytest.approx(said.tolist(), abs=1e-4)


def test_a_lens_chooses_layers_follows_edits_and_skips_no_item(pair: Twins):
    lens = logit_lens(pair.traced, SCENES, layers=[1], positions=answer.source)
    assert set(lens.rows.site) == {"blocks.1.hook_resid_post"} and list(lens.rows["item"]) == [i.id for i in SCENES]
    one = lens.frame()
    assert one.accuracy.tolist() == [lens.rows.correct.mean()] and one.step.tolist() == [-1] and 0 < one.letters[0] < 1
    zeroed = logit_lens(pair.traced.edited(Edit(Zero())), SCENES, layers=[], top=1).rows
    vocabulary = pair.plain.lm_head.weight.shape[0]
    assert zeroed.top_logprobs.map(lambda top: top[0]).tolist() == pytest.approx([-np.log(vocabulary)] * len(zeroed))
    with pytest.raises(SettingError, match="top=0"):
        logit_lens(pair.traced, SCENES, top=0)
    with pytest.raises(SiteError, match="layer 9"):
        logit_lens(pair.traced, SCENES, layers=[9])


def test_behind_a_head_the_fed_vector_is_not_unembedded():
    lens = logit_lens(twins(lvr_head="simple").traced, SCENES[:2])
    assert sorted(set(lens.rows.depth)) == list(range(1, LAYERS + 1))


# --- nearest patches --------------------------------------------------------------------------------------------------


def test_nearest_patches_are_those_of_plain_cosines_with_their_place_and_box(pair: Twins):
    items = [replace(SCENES[0], boxes=()), *SCENES[1:]]
    found = nearest_patches(pair.traced, items, top=2)
    run, _ = plain_run(pair, items)
    with torch.no_grad(), reading(pair.plain, ["blocks.0.hook_resid_pre"]) as seen:
        pair.plain.step(**whole(pair, run))
    stream = seen["blocks.0.hook_resid_pre"][0].double()
    assert found.without_box == (items[0].id,) and len(found.rows) == len(items) * STEPS * 2
    for row, item in enumerate(items):
        fed, patches = stream[row, latent.mask(run)[row]], stream[row, image.mask(run)[row]]
        similar = torch.nn.functional.cosine_similarity(fed[:, None], patches[None], dim=-1)
        own = found.rows[found.rows["item"] == item.id]
        for step in range(STEPS):
            order = similar[step].argsort(descending=True)[:2]
            lines = own[own.step == step].sort_values("rank")
            assert lines.cosine.tolist() == pytest.approx(similar[step, order].tolist(), abs=1e-4)
            places = run.patches[row, image.mask(run)[row]][order].tolist()
            assert lines[["patch_row", "patch_column"]].to_numpy().tolist() == places
            if item.boxes:
                inside = image.box.mask(run)[row, image.mask(run)[row]]
                assert lines.in_box.tolist() == inside[order].tolist()
                assert lines.area.tolist() == pytest.approx([float(inside.double().mean())] * 2)
    assert set(found.frame().n) == {len(items) - 1}
    with pytest.raises(SettingError, match="top=0"):
        nearest_patches(pair.traced, items, top=0)


def test_the_share_in_the_box_is_held_against_the_boxs_area_by_hand():
    rows = pd.DataFrame(
        {
            "item": ["a", "a", "b", "b", "c", "c"], "group": ["1", "1", "2", "2", "3", "3"], "step": 0,
            "rank": [0, 1] * 3, "cosine": [1.0, 0.5] * 3, "in_box": [True, False, True, True, None, None],
            "area": [0.25, 0.25, 0.25, 0.25, np.nan, np.nan],
        }
    )  # fmt: skip
    (line,) = NearestPatches(rows).frame().to_dict("records")
    assert (line["n"], line["in_box"], line["area"], line["excess"], line["enrichment"]) == (2, 0.75, 0.25, 0.5, 3.0)
    with pytest.raises(SettingError, match="none of 1 items has a box"):
        NearestPatches(rows[rows["item"] == "c"]).frame()


# --- attention --------------------------------------------------------------------------------------------------------


def test_attention_mass_and_enrichment_by_hand():
    pattern = torch.tensor([[[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.2, 0.7, 0], [0.4, 0.3, 0.2, 0.1]]]])
    queries, keys = torch.tensor([[False, False, True, True]]), torch.tensor([[True, True, False, False]])
    assert attention_mass(pattern, queries, keys).tolist() == [[pytest.approx((0.3 + 0.7) / 2)]]
    assert attention_mass(pattern, queries, torch.ones_like(keys)).tolist() == [[pytest.approx(1.0)]]
    assert attention_mass(pattern, queries, torch.zeros_like(keys)).tolist() == [[0.0]]
    with pytest.raises(RoleError, match="row 0 has no query"):
        attention_mass(pattern, torch.zeros_like(queries), keys)
    rich = enrichment(torch.tensor([[0.3, 0.1, 0.0]]), torch.tensor([[0.6, 0.4, 0.0]]), torch.tensor([0.25]))
    assert rich[0, :2].tolist() == pytest.approx([2.0, 1.0]) and bool(rich[0, 2].isnan())


def test_uniform_attention_has_no_preference_whatever_the_area():
    pattern = torch.full((2, 3, 5, 8), 1 / 8)
    queries, part = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 8, dtype=torch.bool)
    part[0, :2], part[1, :5] = True, True
    whole_image = torch.zeros_like(part)
    whole_image[:, :6] = True
    area = part.sum(1) / whole_image.sum(1)
    inside, mass = attention_mass(pattern, queries, part), attention_mass(pattern, queries, whole_image)
    assert enrichment(inside, mass, area) == pytest.approx(torch.ones(2, 3))


def test_items_whose_image_gets_no_attention_are_left_out_of_the_enrichment_and_counted():
    rows = pd.DataFrame(
        {"item": list("abc"), "group": list("123"), "layer": 0, "head": 0, "mass": [0.2, 0.4, 0.0],
         "enrichment": [1.0, 3.0, np.nan]}
    )  # fmt: skip
    (line,) = AttentionMass(rows).frame().to_dict("records")
    assert (line["n"], line["n_enrichment"], line["enrichment"]) == (3, 2, 2.0)
    assert line["mass"] == pytest.approx(0.2)


@pytest.mark.skipif(not HAS_PATTERN, reason="the site attn.hook_pattern is not served yet")
def test_attention_of_a_model_is_that_of_transformers_own_eager_attention(pair: Twins):
    found = attention(pair.traced, SCENES, by=latent, to=image.box)
    run, _ = plain_run(pair, SCENES)
    pair.plain.set_attn_implementation("eager")
    kept: list[torch.Tensor] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda _, args, out: kept.append(out[1].clone()))
        for layer in pair.plain.model.language_model.layers
    ]
    try:
        with torch.no_grad():
            pair.plain.step(**whole(pair, run))
    finally:
        pair.plain.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
    for layer, pattern in enumerate(kept):
        mass = attention_mass(pattern, latent.mask(run), image.box.mask(run))
        own = found.rows[found.rows.layer == layer].mass.to_numpy().reshape(mass.shape)
        assert own == pytest.approx(mass.numpy(), abs=1e-5)


@pytest.mark.skipif(HAS_PATTERN, reason="the site attn.hook_pattern is served")
def test_without_attention_patterns_the_wrapper_says_so(pair: Twins):
    with pytest.raises(SiteError, match="hook_pattern"):
        attention(pair.traced, SCENES)


# --- sensitivity ------------------------------------------------------------------------------------------------------


def test_the_same_image_moves_nothing_and_flips_nothing(pair: Twins):
    found = sensitivity(pair.traced, SCENES, [replace(item, id=f"{item.id} again") for item in SCENES])
    assert (found.rows.moved == 0).all() and (found.rows.flipped == 0).all() and found.rows.cosine.min() > 1 - 1e-9
    assert list(found.frame().index) == ["elsewhere"] and found.frame().n.tolist() == [len(SCENES)]


def test_how_far_latents_move_by_hand_and_kinds_are_told_by_their_answers(pair: Twins):
    blank = [replace(item, image=Image.new("RGB", item.image.size, "white")) for item in SCENES]
    edited = [
        replace(one, answer=next(letter for letter in one.letters if letter != one.answer)) if n < 3 else one
        for n, one in enumerate(blank)
    ]
    found = sensitivity(pair.traced, SCENES, edited)
    assert found.rows.groupby("pair").kind.first().tolist() == ["relevant"] * 3 + ["elsewhere"] * 3
    old, new = (plain_run(pair, items)[0].latents.double() for items in (SCENES, blank))
    distances = torch.stack([(a - b).square().sum(-1) for i, a in enumerate(old) for b in old[i + 1 :]])
    expected = (old - new).norm(dim=-1) / distances.mean(0).sqrt()
    assert found.rows.moved.to_numpy().reshape(expected.shape) == pytest.approx(expected.numpy(), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(old, new, dim=-1)
    assert found.rows.cosine.to_numpy().reshape(cosine.shape) == pytest.approx(cosine.numpy(), abs=1e-4)
    frame = found.frame()
    assert frame.loc["relevant"].moved == pytest.approx(expected[:3].mean().item(), rel=1e-3)
    assert between_items(old) == pytest.approx(distances.mean(0).sqrt())


def test_an_original_may_stand_in_several_pairs(pair: Twins):
    twice = sensitivity(pair.traced, [*SCENES, *SCENES], [*SCENES, *SCENES[::-1]][:6] + list(SCENES))
    assert twice.rows.pair.nunique() == 12 and (twice.rows.moved == 0).all()


def test_lists_that_are_not_pairs_are_refused(pair: Twins):
    with pytest.raises(ItemError, match="6 items and 5 edited"):
        sensitivity(pair.traced, SCENES, SCENES[:5])
    with pytest.raises(ItemError, match="differ in question or options"):
        sensitivity(pair.traced, SCENES, SCENES[::-1])
    with pytest.raises(ItemError, match="has no answer"):
        sensitivity(pair.traced, SCENES, [replace(item, answer=None) for item in SCENES])


# --- variance ---------------------------------------------------------------------------------------------------------


def test_parts_of_the_variance_add_up_and_are_those_of_a_regression():
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    x = rng.normal(size=(12, 4, 5)) + rng.normal(size=(4, 5)) + 2 * rng.normal(size=(3, 5))[labels][:, None]
    shares = variance_shares(torch.from_numpy(x), labels.tolist())
    assert shares.step + shares.label + shares.item + shares.interaction == pytest.approx(1)
    flat, step = x.reshape(48, 5), np.tile(np.arange(4), 12)
    item, label = np.repeat(np.arange(12), 4), np.repeat(labels, 4)

    def explained(*factors: np.ndarray) -> float:
        design = np.concatenate([np.eye(one.max() + 1)[one] for one in factors], axis=1)
        rest = flat - design @ np.linalg.lstsq(design, flat, rcond=None)[0]
        return 1 - (rest**2).sum() / ((flat - flat.mean(0)) ** 2).sum()

    assert shares.step == pytest.approx(explained(step))
    assert shares.label == pytest.approx(explained(label))
    assert shares.item == pytest.approx(explained(item) - explained(label))
    assert shares.interaction == pytest.approx(1 - explained(step, item))


def test_one_source_of_variance_gets_all_of_it():
    rng = torch.Generator().manual_seed(0)
    step, item = torch.randn(1, 4, 5, generator=rng).double(), torch.randn(6, 1, 5, generator=rng).double()
    assert variance_shares(step.expand(6, 4, 5), "aabbcc").step == pytest.approx(1)
    alone = variance_shares(item.expand(6, 4, 5), range(6))
    assert (alone.label, alone.item) == (pytest.approx(1), pytest.approx(0))
    assert variance_shares(item.expand(6, 4, 5), "xxxxxx").item == pytest.approx(1)
    with pytest.raises(SettingError, match="do not vary"):
        variance_shares(torch.ones(3, 2, 2), "abc")
    with pytest.raises(SettingError, match="2 labels for 3 items"):
        variance_shares(torch.ones(3, 2, 2), "ab")
