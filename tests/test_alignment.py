"""Alignment: cosines against transformers' own forward and against other libraries, and items that have no target."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn.functional import cosine_similarity

from prismlens.alignment import FORCED, FREE, TARGET, Alignment, alignment
from prismlens.data.shapes import shapes
from prismlens.errors import DonorError, ItemError, RoleError
from prismlens.interventions import Edit, Swap, Zero, match_donors
from prismlens.models.loop import unroll
from prismlens.positions import latent, slot_tokens
from prismlens.trace import Run
from prismlens.unrolled import Segment
from tests.plain_hooks import STEPS, Twins, twins
from tests.test_loop import naive, scripted

SCENES = shapes(9, seed=3)
LONELY = replace(SCENES[8], category="of its own", group="alone", id="lonely")
ITEMS = [LONELY, *SCENES[:8]]
"""The first item has nobody to be compared with, so that a shift of items would show."""


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture(scope="module")
def measured(pair: Twins) -> Alignment:
    return alignment(pair.traced, ITEMS, seed=2, on_missing="drop")


@torch.no_grad()
def targets_of(pair: Twins, item) -> torch.Tensor:
    """An item's targets from transformers' own image features."""
    prompt = pair.processor([item])
    features = torch.cat(
        tuple(pair.plain.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output)
    )
    rows, columns = prompt.grids[0].tolist()
    return features[slot_tokens(item.boxes, (rows, columns), STEPS)]


def states_of(pair: Twins, item, mode: str) -> torch.Tensor:
    """The states that would become the item's latents, a whole forward for each of the latents before."""
    if mode == FORCED:
        return naive(pair.plain, pair.processor, item, list(targets_of(pair, item)))[-1 - STEPS : -1]
    own: list[torch.Tensor] = []
    for _ in range(STEPS):
        own.append(naive(pair.plain, pair.processor, item, list(own))[-1])
    return torch.stack(own)


@pytest.mark.parametrize("mode", [FREE, FORCED])
@pytest.mark.parametrize("item", SCENES[:3], ids=lambda item: item.id)
def test_cosines_are_those_of_a_plain_forward(pair, measured, item, mode: str):
    states, goal = states_of(pair, item, mode), targets_of(pair, item)
    rows = measured.rows[(measured.rows["item"] == item.id) & (measured.rows["mode"] == mode)]
    (other,) = set(rows.other)
    theirs = targets_of(pair, next(one for one in ITEMS if one.id == other))
    assert list(rows.step) == list(range(STEPS)) and set(rows.group) == {item.group}
    assert rows.cosine.to_numpy() == pytest.approx(cosine_similarity(states, goal, dim=-1).numpy(), abs=1e-5)
    assert rows.cosine_other.to_numpy() == pytest.approx(cosine_similarity(states, theirs, dim=-1).numpy(), abs=1e-5)
    assert rows.mse.to_numpy() == pytest.approx(((states - goal) ** 2).mean(-1).numpy(), rel=1e-4)


def test_forced_and_free_part_after_the_first_latent_and_the_floor_is_not_the_own_target(measured):
    rows = measured.rows.set_index(["mode", "step", "item"]).sort_index()
    for column in ("cosine", "cosine_other", "mse"):
        assert np.allclose(rows[column][FREE, 0], rows[column][FORCED, 0], rtol=1e-4, atol=1e-5)
        for step in range(1, STEPS):
            assert not np.isclose(rows[column][FREE, step], rows[column][FORCED, step], rtol=1e-3, atol=1e-4).any()
    assert (measured.rows.cosine - measured.rows.cosine_other).abs().min() > 1e-4


def test_the_free_cosine_is_that_of_the_latents_that_a_run_records(pair, measured):
    run = pair.traced.generate(SCENES[:8])
    near = cosine_similarity(run.latents, pair.traced.targets(SCENES[:8]), dim=-1)
    rows = measured.rows[measured.rows["mode"] == FREE]
    assert list(rows["item"][::STEPS]) == [item.id for item in SCENES[:8]]
    assert rows.cosine.to_numpy() == pytest.approx(near.flatten().numpy(), abs=1e-5)


def test_the_other_item_has_another_image_and_another_answer(measured):
    by_id = {item.id: item for item in ITEMS}
    expected = match_donors(SCENES[:8], Swap(donor="different-answer"), seed=2, pool=ITEMS)
    assert dict(zip(measured.rows["item"], measured.rows.other, strict=True)) == expected
    for name, other in expected.items():
        assert by_id[other].group != by_id[name].group and by_id[other].content != by_id[name].content
        assert by_id[other].category == by_id[name].category


def test_who_has_nobody_to_be_compared_with_is_listed_or_an_error(pair, measured):
    assert measured.left_out == ("lonely",) and "lonely" not in set(measured.rows["item"])
    with pytest.raises(DonorError, match="'lonely'"):
        alignment(pair.traced, ITEMS)


def test_the_edits_of_a_model_are_in_what_is_measured(pair):
    view = pair.traced.edited(Edit(Zero(), positions=latent[0], mode="held"))
    run = view.generate(SCENES[:8])
    rows = alignment(view, SCENES[:8]).rows
    plain = alignment(pair.traced, SCENES[:8]).rows
    free = rows[rows["mode"] == FREE].cosine.to_numpy().reshape(8, STEPS)
    before = plain[plain["mode"] == FREE].cosine.to_numpy().reshape(8, STEPS)
    assert torch.equal(run.latents, pair.traced.generate(SCENES[:8]).latents)
    assert np.allclose(free[:, 0], before[:, 0], atol=1e-6) and not np.isclose(free[:, 1:], before[:, 1:]).any()


# --- the frame --------------------------------------------------------------------------------------------------------


def made() -> Alignment:
    """6 items of 3 steps in 3 groups of equal size, with numbers that have nothing to do with a model."""
    rng = np.random.default_rng(0)
    rows = [
        {"item": f"i{i}", "group": f"g{i // 2}", "mode": mode, "step": step, "cosine": rng.uniform(0.4, 0.9),
         "cosine_other": rng.uniform(0.1, 0.6), "mse": rng.uniform(1, 2), "other": "x"}
        for mode in (FREE, FORCED) for i in range(6) for step in range(3)
    ]  # fmt: skip
    return Alignment(pd.DataFrame(rows), seed=5)


def test_the_frame_is_the_mean_of_the_rows_with_intervals_over_groups():
    measured = made()
    frame = measured.frame()
    assert list(frame.index) == [FREE, FORCED] and list(frame.n) == [6, 6]
    for mode, rows in measured.rows.groupby("mode"):
        gap = rows.cosine - rows.cosine_other
        for name, values in (
            ("cosine", rows.cosine), ("cosine_other", rows.cosine_other), ("mse", rows.mse), ("difference", gap),
        ):  # fmt: skip
            means = values.groupby(rows.group).mean().to_numpy()
            assert frame.loc[mode, name] == pytest.approx(values.mean())
            # All 27 resamples of three groups; the expanded tails reach to the extremes, which are the groups' own.
            tail = stats.norm.cdf(-np.sqrt(3 / 2) * stats.t.ppf(0.975, 2))
            assert tail < 1 / 27
            assert frame.loc[mode, f"{name}_low"] == pytest.approx(means.min())
            assert frame.loc[mode, f"{name}_high"] == pytest.approx(means.max())
        sums = gap.groupby(measured.rows.group).sum().to_numpy()
        flips = np.abs(np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]) @ sums)
        assert frame.loc[mode, "p"] == np.mean(flips >= abs(sums.sum()) - 1e-9)


def test_the_frame_of_a_model_has_a_line_for_each_mode(measured):
    frame = measured.frame()
    assert list(frame.index) == [FREE, FORCED] and list(frame.n) == [8, 8]
    assert frame.cosine[FREE] == pytest.approx(measured.rows.cosine[measured.rows["mode"] == FREE].mean())


# --- what cannot be measured ------------------------------------------------------------------------------------------


def test_items_without_boxes_are_named(pair):
    items = [replace(item, boxes=()) if i in (1, 4) else item for i, item in enumerate(SCENES[:8])]
    with pytest.raises(ItemError, match="2 of 8 items have no box") as caught:
        alignment(pair.traced, items)
    assert f"{items[1].id!r}, {items[4].id!r}" in str(caught.value)


def test_a_block_that_the_model_ends_itself_is_refused_and_named(pair, monkeypatch: pytest.MonkeyPatch):
    loose = replace(pair.settings, latent_exit="end_token", latent_close=())
    end = scripted(pair.plain, {2: {3: pair.plain.config.lvr_latent_end_id}})
    short = unroll(pair.plain, pair.processor(SCENES[:8]), loose, forward=end)
    run = Run(short, ("",) * 8, (None,) * 8, torch.full((8, 4), float("nan")), 2)
    monkeypatch.setattr(pair.traced, "generate", lambda items: run, raising=False)
    with pytest.raises(RoleError, match="1 of 8 items have more or fewer than 3 latents") as caught:
        alignment(pair.traced, SCENES[:8])
    assert repr(SCENES[3].id) in str(caught.value)


# --- floors, geometry and lengths on a model --------------------------------------------------------------------------


def test_columns_of_a_model_are_those_of_its_own_targets(pair, measured):
    """Computed again with loops, from targets of transformers' own features."""
    goals = torch.stack([targets_of(pair, item) for item in ITEMS])
    for mode in (FREE, FORCED):
        for item in SCENES[:2]:
            own = ITEMS.index(item)
            states = states_of(pair, item, mode)
            rows = measured.rows[(measured.rows["item"] == item.id) & (measured.rows["mode"] == mode)]
            elsewhere = [i for i, one in enumerate(ITEMS) if one.group != item.group]
            mean = goals[elsewhere].mean(0)
            assert rows.cosine_mean.to_numpy() == pytest.approx(
                cosine_similarity(states, mean, dim=-1).numpy(), abs=1e-5
            )
            assert rows.mse_mean.to_numpy() == pytest.approx(((states - mean) ** 2).mean(-1).numpy(), rel=1e-4)
            near = [cosine_similarity(states, goals[i], dim=-1) for i in elsewhere]
            beaten = sum((one > cosine_similarity(states, goals[own], dim=-1)).long() for one in near)
            assert list(rows["rank"]) == (beaten + 1).tolist()
            assert set(rows.candidates) == {len(elsewhere) + 1}


def test_frames_by_step_and_geometry_and_lengths_have_their_lines(pair, measured):
    by_step = measured.frame(by_step=True)
    assert list(by_step.index) == [(mode, "latent", step) for mode in (FREE, FORCED) for step in range(STEPS)]
    assert by_step.cosine[FREE].mean() == pytest.approx(measured.frame().cosine[FREE])
    shape = measured.geometry.set_index(["mode", "step"])
    assert list(shape.index) == [(mode, step) for mode in (FREE, FORCED, TARGET) for step in range(STEPS)]
    run = pair.traced.generate(SCENES[:8])
    latents = run.latents[:, 1].double().numpy()
    centred = latents - latents.mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    assert shape.participation_ratio[FREE, 1] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-4)
    assert shape.rank_90[FREE, 1] == 1 + np.argmax(np.cumsum(variances) >= 0.9 * variances.sum())
    assert shape.cka[TARGET].isna().all() and shape.cka.loc[[FREE, FORCED]].between(-1, 1).all()
    norms = measured.norms()
    assert norms.norm["latent, free"] == pytest.approx(run.latents.norm(dim=-1).mean().item(), rel=1e-5)
    prompt = pair.processor([SCENES[0]])
    text = prompt.input_ids[0][(prompt.segments[0] != Segment.IMAGE)]
    length = pair.plain.get_input_embeddings()(text).norm(dim=-1).mean().item()
    first = measured.lengths.set_index(["kind", "item"]).norm
    assert first["text", SCENES[0].id] == pytest.approx(length, rel=1e-5)
    assert norms.to_image["image"] == norms.to_text["text"] == 1
