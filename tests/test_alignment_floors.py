"""What a cosine is held against, by hand and on made-up models that know everything or nothing of their items."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prismlens.alignment import FREE, Alignment
from prismlens.alignment.boxes import against_other_boxes, other_slots
from prismlens.alignment.floors import (
    centred_cosine,
    chance_reciprocal_rank,
    mean_elsewhere,
    retrieval,
    similarities,
)
from prismlens.alignment.rows import Block, measure_rows
from prismlens.interventions import Swap, match_donors
from prismlens.positions import box_tokens, slot_tokens
from prismlens.trace.targets import ImageFeatures
from prismlens.types import Item

PLANE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])[:, None]
"""Four targets of one step: east, north, west, and 53 degrees up from east."""
APART = ["a", "b", "c", "d"]


def test_the_rank_counts_the_nearer_targets_of_other_groups_and_halves_ties():
    own = torch.arange(4)
    near = similarities(PLANE, PLANE)
    assert near[3, :, 0].tolist() == pytest.approx([0.6, 0.8, -0.6, 1.0])
    assert retrieval(near, own, APART).rank.flatten().tolist() == [1, 1, 1, 1]
    north = torch.tensor([[0.0, 1.0]]).repeat(4, 1)[:, None]
    found = retrieval(similarities(north, PLANE), own, APART)
    # Cosines to north are 0, 1, 0, 0.8: east and west share the third place.
    assert found.rank.flatten().tolist() == [3.5, 1, 3.5, 2] and found.candidates.tolist() == [4, 4, 4, 4]
    same = retrieval(similarities(north, PLANE), own, ["a", "a", "c", "d"])
    assert same.rank.flatten().tolist() == [2.5, 1, 3.5, 2] and same.candidates.tolist() == [3, 3, 4, 4]
    zero = retrieval(similarities(torch.zeros(4, 1, 2), PLANE), own, APART)
    assert zero.rank.isnan().all()


def test_the_chance_of_a_reciprocal_rank_is_its_mean_over_all_ranks():
    for n in (1, 2, 7):
        expected = sum(1 / rank for rank in range(1, n + 1)) / n
        assert chance_reciprocal_rank(torch.tensor([n, 1]))[0].item() == pytest.approx(expected)


def test_the_mean_target_leaves_out_the_own_group():
    mean = mean_elsewhere(PLANE, torch.tensor([0, 3]), ["a", "a", "c", "d"])
    assert mean[0, 0].tolist() == pytest.approx([(-1 + 0.6) / 2, 0.4])
    assert mean[1, 0].tolist() == pytest.approx([0, 1 / 3])
    assert mean_elsewhere(PLANE, torch.tensor([0]), ["a"] * 4).isnan().all()


def centred_by_hand(states, targets, halves) -> list[float]:
    """A loop over items: the mean of one half off the state, that of the other off the target, both ways."""
    out = []
    for i, (state, target) in enumerate(zip(states, targets, strict=True)):
        one, two = (np.mean([targets[j] for j in half if j != i], axis=0) for half in halves)
        ways = [(state - one, target - two), (state - two, target - one)]
        out.append(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ways]))
    return out


def test_the_centred_cosine_is_that_of_a_loop_over_items():
    rng = np.random.default_rng(0)
    states, targets = rng.normal(size=(2, 6, 1, 5)).astype("float32")
    got = centred_cosine(torch.tensor(states), torch.tensor(targets), torch.arange(6), list("abcdef"), seed=4).flatten()
    order = np.random.default_rng(4).permutation(6)
    halves = [np.flatnonzero(order < 3), np.flatnonzero(order >= 3)]
    assert got.tolist() == pytest.approx(centred_by_hand(states[:, 0], targets[:, 0], halves), abs=1e-6)
    few = centred_cosine(torch.tensor(states), torch.tensor(targets), torch.arange(6), list("aabbcc"), seed=4)
    assert few.isnan().any()


def test_a_state_that_is_the_same_for_all_is_not_centred_alike_though_its_plain_cosine_is_high():
    """Taking one leave-one-out mean off both sides would make it alike, by 1 / (n - 1) of the targets' spread."""
    rng = np.random.default_rng(1)
    got, naive = [], []
    for seed in range(60):
        targets = torch.tensor(3 + rng.normal(size=(8, 1, 20)), dtype=torch.float32)
        states = torch.full((8, 1, 20), 3.0)
        own = torch.arange(8)
        got += centred_cosine(states, targets, own, list("abcdefgh"), seed=seed).flatten().tolist()
        mean = mean_elsewhere(targets, own, list("abcdefgh"))
        naive += torch.cosine_similarity(states - mean, targets - mean, dim=-1).flatten().tolist()
        assert torch.cosine_similarity(states, targets, dim=-1).min() > 0.8
    error = np.std(got) / math.sqrt(len(got))
    assert abs(np.mean(got)) < 4 * error
    assert np.mean(naive) > 0.2


def test_other_boxes_have_the_same_shape_lie_inside_and_share_no_token_with_the_own_one():
    box, grid = (0.0, 0.0, 0.5, 0.5), (4, 4)
    covered = box_tokens(box, grid)
    assert covered == [0, 1, 4, 5]
    found = other_slots(slot_tokens([box], grid, 2), covered, grid)
    # Nine places for a square of two tokens on a grid of four; the own one and three that overlap it are left out.
    assert sorted(map(tuple, found.tolist())) == [(2, 6), (6, 10), (8, 12), (9, 13), (10, 14)]
    everything = box_tokens((0.0, 0.0, 1.0, 1.0), grid)
    assert other_slots(everything[:3], everything, grid).shape == (0, 3)


def test_the_best_other_box_is_that_of_the_highest_mean_and_the_share_below_counts_steps_apart():
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = against_other_boxes(states, tokens, [2, 3], torch.tensor([[0, 1], [1, 0], [3, 2]]))
    assert found.boxes == 3
    assert found.best.tolist() == pytest.approx([1.0, 1.0])
    assert found.below.tolist() == pytest.approx([2 / 3, 2 / 3])  # own 0.8 and 0.8; others 1, 0, 0.6 at both steps
    tied = against_other_boxes(states, tokens, [2, 3], torch.tensor([[2, 3]]))
    assert tied.below.tolist() == [0.5, 0.5]
    none = against_other_boxes(states, tokens, [2, 3], torch.zeros(0, 2, dtype=torch.long))
    assert none.boxes == 0 and none.best.isnan().all() and none.below.isnan().all()


# --- models that know everything, or nothing --------------------------------------------------------------------------

N, STEPS, WIDTH, GRID = 48, 2, 16, (4, 4)
BOX = (0.25, 0.25, 0.5, 0.5)


@pytest.fixture(scope="module")
def block() -> Block:
    """Items whose image features share a mean and are otherwise unrelated."""
    rng = np.random.default_rng(3)
    items = [
        Item(Image.new("RGB", (8, 8)), "?", ("a", "b"), "AB"[i % 2], (BOX,), f"g{i}", "c", f"i{i}") for i in range(N)
    ]
    features = [
        ImageFeatures(torch.tensor(1 + rng.normal(size=(16, WIDTH)), dtype=torch.float32), (5, 5), GRID) for _ in items
    ]
    others = match_donors(items, Swap(donor="different-answer"), seed=0)
    return Block(items, features, items, others, ["latent"] * STEPS, 0)


def line(block: Block, states: torch.Tensor) -> pd.Series:
    return Alignment(pd.DataFrame(measure_rows(block, FREE, states)), seed=1).frame().loc[FREE]


def test_latents_that_are_their_targets_beat_every_floor(block: Block):
    found = line(block, block.targets)
    assert found.cosine == pytest.approx(1) and found.centred > 0.9 and found.mse == pytest.approx(0)
    assert found.reciprocal_rank == found.recall == found.boxes_below == 1
    for name in ("difference", "difference_mean", "difference_box"):
        assert found[f"{name}_low"] > 0.1
    assert found.recall_chance == pytest.approx(1 / N) and found.n_box == N


def test_shuffled_latents_are_at_chance(block: Block):
    """Latents of other items: each is a real target, none is its own. The mean and the best box win by construction."""
    found = line(block, block.targets.roll(1, dims=0))
    assert found.cosine > 0.4, "they share a mean, so the plain cosine is high"
    assert found.difference_low < 0 < found.difference_high
    assert found.centred_low < 0 < found.centred_high
    assert found.boxes_below_low < 0.5 < found.boxes_below_high
    assert found.reciprocal_rank_low < found.reciprocal_rank_chance < found.reciprocal_rank_high
    assert found.recall == pytest.approx(0, abs=0.05)
    assert found.difference_mean_high < 0 and found.difference_box_high < 0


def test_a_box_that_fills_the_image_has_no_other_and_is_counted(block: Block):
    items = [
        Item(item.image, "?", item.options, item.answer, ((0, 0, 1, 1),) if i < 5 else (BOX,), item.group, "c", item.id)
        for i, item in enumerate(block.items)
    ]
    full = Block(items, block.features, items, block.others, block.stages, 0)
    rows = pd.DataFrame(measure_rows(full, FREE, block.targets))
    assert rows.cosine_box.isna().sum() == 5 * STEPS and set(rows.boxes[rows.cosine_box.isna()]) == {0}
    assert Alignment(rows).frame().n_box[FREE] == N - 5
