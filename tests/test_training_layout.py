"""A pack laid out by hand, column by column, in both layouts; M-RoPE ids against the model's own; other targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prismlens.errors import SettingError
from prismlens.training.batch import Batch, Group, Pack
from prismlens.training.examples import IGNORE, Example, Part
from prismlens.training.layout import collate, mrope
from prismlens.unrolled import Segment
from tests.training_cases import base_of

N, FREE_ID = IGNORE, 14
T, IM, Q, L, X, A, B = (int(getattr(Segment, name)) for name in (
    "TEMPLATE", "IMAGE", "QUESTION", "LEAD", "LATENT", "ANSWER", "BETWEEN",
))  # fmt: skip
BLOCK = (Part((20, 21), (Q, L)), Part((8, 8), (X, X), (1, 0), (0, 1), 0), Part((30,), (A,)))
STAGED = (
    Part((22,), (L,)), Part((8,), (X,), (1,), (0,), 0), Part((FREE_ID, FREE_ID, 23), (B, B, B)),
    Part((8,), (X,), (0,), (0,), 1), Part((31,), (A,)),
)  # fmt: skip


def example(parts: tuple[Part, ...], name: str, first_word: int = 40, facts=()) -> Example:
    n = sum(len(part.ids) for part in parts)
    return Example(name, parts, (*[N] * (n - 2), 50, N), first_word, facts)


def group(*examples: Example, grid: tuple[int, int] = (1, 2), value: float = 0.0) -> Group:
    """A template token, the image, a template token, and what follows."""
    n = grid[0] * grid[1]
    features = torch.full((n, 4), value) + torch.arange(n)[:, None]
    return Group(((1, *[5] * n, 4), (T, *[IM] * n, T)), examples, grid, features)


FACT = (1, (2, 3, 4, 5))
PACKS = (
    Pack((group(example(BLOCK, "a", facts=(FACT,)), example(BLOCK, "b", -1), value=10.0),), phase=1, seed=7),
    Pack((group(example(BLOCK, "c"), value=20.0), group(example(BLOCK, "d"), grid=(2, 1), value=30.0)), 1, 8),
    Pack((group(example(BLOCK, "e"), value=40.0),), 1, 9),
)


def laid(packs: tuple[Pack, ...] = PACKS, **kwargs) -> Batch:
    return collate(packs, **{"width": 4, "waves": False, "stage_names": ("latent",)} | kwargs)


def test_a_pack_side_by_side_column_by_column():
    batch = laid()
    run = batch.unrolled
    first = slice(0, 14)
    assert run.input_ids[0, first].tolist() == [1, 5, 5, 4, 20, 21, 8, 8, 30, 20, 21, 8, 8, 30]
    assert run.segments[0, first].tolist() == [T, IM, IM, T, Q, L, X, X, A, Q, L, X, X, A]
    assert batch.groups[0, first].tolist() == [0] * 14
    assert batch.blocks[0, first].tolist() == [-1] * 4 + [0] * 5 + [1] * 5
    assert batch.blocks[1].tolist() == [-1] * 4 + [0] * 5 + [-2] * 4 + [1] * 5
    assert batch.groups[1].tolist() == [0] * 9 + [1] * 9
    # the image is one row of two; text goes on after it, in every example from the same position
    assert run.position_ids[:, 0, first].tolist() == [
        [0, 1, 1, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8],
        [0, 1, 1, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8],
    ]
    assert run.position_ids[1, 1].tolist()[9:13] == [0, 1, 2, 3], "a column of two"
    assert batch.labels[0, first].tolist() == [N, N, N, N, N, N, N, 50, N, N, N, N, 50, N]
    assert run.steps[0, first].tolist() == [-1] * 6 + [0, 1] + [-1] * 3 + [2, 3, -1]
    assert run.stages[0, first].tolist() == [-1] * 6 + [0, 0] + [-1] * 3 + [0, 0, -1]
    assert run.n_latents.tolist() == [4, 4, 2]
    assert batch.cuts == (18,)


def test_slots_know_their_sources_targets_words_and_ends():
    batch = laid()
    assert batch.sources.tolist() == [[5, 6, 10, 11], [5, 6, 14, 15], [5, 6, 0, 0]]
    # slots are taught tokens 1 and 0 of their own image; images have two tokens, in the order of the groups
    assert batch.slot_feature.tolist() == [[1, 0, 1, 0], [3, 2, 5, 4], [7, 6, -1, -1]]
    assert batch.image_features is not None
    assert batch.image_features[:, 0].tolist() == [10, 11, 20, 21, 30, 31, 40, 41]
    assert batch.slots.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert batch.words.tolist() == [[40, 40, N, N], [40] * 4, [40, 40, N, N]]
    assert batch.ends.tolist() == [[0, 7], [0, 12], [1, 7], [1, 16], [2, 7]]
    assert batch.free.shape == (0, 0, 2)
    assert (batch.phase, batch.seeds, batch.ids) == (1, (7, 8, 9), (("a", "b"), ("c", "d"), ("e",)))


def test_facts_stand_at_their_token():
    batch = laid()
    assert batch.facts[0, 5].tolist() == [2, 3, 4, 5]
    assert (batch.facts != N).any(-1).nonzero().tolist() == [[0, 5]]


def test_parts_are_told_apart_by_group_box_and_stage():
    def classes(values: list[int]) -> list[int]:
        return [values.index(value) for value in values]

    parts = laid().slot_part
    # two examples about the same image share its first box's part and its second box's
    assert classes(parts[0].tolist()) == [0, 1, 0, 1]
    assert classes(parts[1].tolist()) == [0, 1, 2, 3]
    pack = Pack((group(example(STAGED, "a")),))
    staged = laid((pack,), stage_names=("context", "target", "free"), free_id=FREE_ID)
    assert classes(staged.slot_part[0].tolist()) == [0, 1]


def test_free_tokens_and_stages():
    packs = (Pack((group(example(STAGED, "a"), example(STAGED, "b")),)), Pack((group(example(STAGED, "c")),)))
    batch = laid(packs, stage_names=("context", "target", "free"), free_id=FREE_ID)
    assert batch.unrolled.input_ids[1, :12].tolist() == [1, 5, 5, 4, 22, 8, 14, 14, 23, 8, 31, 0]
    assert batch.free.tolist() == [[[0, 6], [0, 7]], [[0, 13], [0, 14]], [[1, 6], [1, 7]]]
    assert batch.unrolled.stages[1, :12].tolist() == [-1, -1, -1, -1, -1, 0, 2, 2, -1, 1, -1, -1]
    assert batch.sources[1].tolist() == [4, 8, 0, 0]
    assert batch.ends.tolist() == [[0, 5], [0, 9], [0, 12], [0, 16], [1, 5], [1, 9]]


def test_padding_is_nothing():
    batch = laid()
    empty = ~batch.unrolled.valid
    assert empty.sum(1).tolist() == [4, 0, 9]
    assert not batch.unrolled.input_ids[empty].any() and not batch.unrolled.position_ids[:, empty].any()
    assert (batch.labels[empty] == N).all() and (batch.unrolled.steps[empty] == -1).all()
    assert (batch.groups[empty] == -1).all() and (batch.facts[empty] == N).all()


def test_waves_put_prompts_first_then_each_examples_latents_in_turn():
    batch = laid(waves=True)
    assert batch.unrolled.input_ids[0].tolist() == [
        1, 5, 5, 4, 20, 21, 20, 21, *[0] * 4, 8, 8, 8, 8, 30, 30,
    ]  # fmt: skip
    assert batch.unrolled.input_ids[1].tolist() == [1, 5, 5, 4, 20, 21, 1, 5, 5, 4, 20, 21, 8, 8, 8, 8, 30, 30]
    assert batch.unrolled.input_ids[2].tolist() == [1, 5, 5, 4, 20, 21, *[0] * 6, 8, 0, 8, 0, 30, 0]
    assert batch.cuts == (12, 14, 16, 18)
    assert batch.blocks[0].tolist()[4:] == [0, 0, 1, 1, -1, -1, -1, -1, 0, 1, 0, 1, 0, 1]
    assert batch.unrolled.steps[2].tolist() == [-1] * 12 + [0, -1, 1, -1, -1, -1]
    assert batch.sources.tolist() == [[5, 7, 12, 13], [5, 11, 12, 13], [5, 12, 0, 0]]
    assert batch.slot_feature.tolist() == [[1, 1, 0, 0], [3, 5, 2, 4], [7, 6, -1, -1]]
    assert batch.ends.tolist() == [[0, 14], [0, 15], [1, 14], [1, 15], [2, 14]]
    assert batch.unrolled.position_ids[0, 0].tolist()[4:] == [4, 5, 4, 5, *[0] * 4, 6, 6, 7, 7, 8, 8]
    assert batch.labels[0].tolist()[14:] == [50, 50, N, N]


@pytest.mark.parametrize("waves", [False, True])
def test_every_source_lies_before_its_slot_and_its_cut(waves: bool):
    packs = (Pack((group(example(STAGED, "a"), example(STAGED, "b")),)), Pack((group(example(STAGED, "c")),)))
    batch = laid(packs, waves=waves, stage_names=("context", "target", "free"), free_id=FREE_ID)
    cuts = np.array(batch.cuts)
    for row, step in batch.slots.nonzero().tolist():
        column = int((batch.unrolled.steps[row] == step).nonzero())
        source = int(batch.sources[row, step])
        assert source < column and batch.blocks[row, source] == batch.blocks[row, column]
        if waves:
            assert np.searchsorted(cuts, column, "right") == 1 + np.searchsorted(cuts, source, "right")


def test_waves_need_examples_with_equally_many_latents():
    longer = (BLOCK[0], Part((8,) * 3, (X,) * 3, (1, 0, 0), (0,) * 3, 0), BLOCK[2])
    for packs in (
        (Pack((group(example(BLOCK, "a"), example(longer, "b")),)),),
        (Pack((group(example(BLOCK, "a")),)), Pack((group(example(longer, "b")),))),
    ):
        assert len(laid(packs).sources) == len(packs), "side by side they may differ"
        with pytest.raises(SettingError, match="different numbers of latents in one batch"):
            laid(packs, waves=True)


def test_a_batch_is_of_one_phase():
    with pytest.raises(SettingError, match="packs of several phases"):
        laid((PACKS[0], replace(PACKS[1], phase=0)))


def test_other_targets_are_those_of_the_next_group_and_the_last_takes_the_firsts():
    own, other = laid(), laid(other=True)
    assert other.slot_feature.tolist() == [[3, 2, 3, 2], [5, 4, 7, 6], [1, 0, -1, -1]]
    assert torch.equal(own.sources, other.sources) and torch.equal(own.slot_part, other.slot_part)
    wave = laid(other=True, waves=True)
    assert wave.slot_feature.tolist()[1:] == [[5, 7, 4, 6], [1, 1, -1, -1]]
    one = (Pack((group(example(BLOCK, "a"), example(BLOCK, "b")),)),)
    with pytest.raises(SettingError, match="a batch of one image"):
        laid(one, other=True)


def test_other_targets_are_repeated_where_the_next_group_has_fewer():
    longer = (BLOCK[0], Part((8,) * 3, (X,) * 3, (0, 0, 1), (0,) * 3, 0), BLOCK[2])
    packs = (Pack((group(example(longer, "a")),)), Pack((group(example(BLOCK, "b")),)))
    assert laid(packs, other=True).slot_feature.tolist() == [[3, 2, 3], [0, 0, -1]]


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 2), (1, 7)])
@pytest.mark.parametrize("head", [1, 4])
def test_positions_around_an_image_are_the_models_own(grid: tuple[int, int], head: int):
    model, _ = base_of(layers=1)
    n = grid[0] * grid[1]
    vision = [3] * (head > 0)
    ids = torch.tensor([[*[50] * (head - len(vision)), *vision, *[5] * n, 4, 51, 52]])
    thw = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    expected = model.rope_positions(ids, torch.ones_like(ids).bool(), thw)[:, 0].T
    assert mrope((ids[0] == 5).numpy(), grid).tolist() == expected.tolist()


def test_a_batch_moves_with_all_its_tensors():
    batch = laid()
    moved = batch.to("meta")
    for before, after in ((batch, moved), (batch.unrolled, moved.unrolled)):
        for name, value in vars(before).items():
            if isinstance(value, torch.Tensor):
                assert getattr(after, name).device.type == "meta", name
            elif name != "unrolled":
                assert getattr(after, name) == value
