"""Shards on disk hold what one cache in memory would, whatever interrupts the writing."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prismlens as pl
from prismlens.cache import ActivationCache, open_cache
from prismlens.cache import writing as cache_writing
from prismlens.data.shapes import shapes
from prismlens.errors import ItemError, ResultsError, RoleError, SettingError
from prismlens.interventions import Edit, Noise, Scale, Swap
from prismlens.positions import Positions, answer, latent, question
from prismlens.trace import PrismModel, streaming
from prismlens.trace.streaming import stream_to_disk
from prismlens.types import Item
from prismlens.unrolled import take
from tests.cache_cases import model_of

ITEMS = shapes(7, seed=3)
NAMES = ["hook_latent", "resid_pre", "attn_out", "mlp_out", "resid_post"]
ROLE = latent | question


@pytest.fixture(scope="module")
def model() -> PrismModel:
    return replace(model_of(), batch_size=3)


@pytest.fixture(scope="module")
def memory(model) -> ActivationCache:
    return model.run_with_cache(ITEMS, NAMES, positions=ROLE)[1]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def agree(cache: ActivationCache, memory: ActivationCache) -> None:
    """Batches are padded to other widths on the way, so the last bits may differ."""
    assert list(cache) == list(memory)
    for name in memory:
        torch.testing.assert_close(cache[name], memory[name], rtol=1e-6, atol=1e-6)
    for field in ("rows", "columns"):
        assert torch.equal(getattr(cache.positions, field), getattr(memory.positions, field))
    for field in ("input_ids", "segments", "steps", "position_ids", "answer_first", "stages", "patches"):
        assert torch.equal(getattr(cache.unrolled, field), getattr(memory.unrolled, field)), field
    assert [item.id for item in cache.unrolled.items] == [item.id for item in memory.unrolled.items]


@pytest.mark.parametrize("shard_items", [None, 2, 7, 100])
def test_the_folder_is_the_cache_of_one_run(model, memory, tmp_path, shard_items):
    cache = model.cache_to_disk(ITEMS, tmp_path / "a", NAMES, positions=ROLE, shard_items=shard_items)
    agree(cache, memory)
    agree(open_cache(tmp_path / "a"), memory)
    agree(ActivationCache.load(tmp_path / "a"), memory)
    torch.testing.assert_close(cache.decompose_resid(2, pos_slice=-1), memory.decompose_resid(2, pos_slice=-1))
    shares = cache.logit_attrs(cache.decompose_resid(), 4)
    torch.testing.assert_close(shares, memory.logit_attrs(memory.decompose_resid(), 4))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list((tmp_path / "a").glob("shard-*"))) == -(-7 // (shard_items or 3))


@pytest.mark.parametrize(
    "edit",
    [Edit(op=Scale(2.0), positions=latent[0]), Edit(op=Swap(), positions=latent), Edit(op=Noise(1.0), positions=latent, mode="held")],
    ids=str,
)  # fmt: skip
def test_edits_act_as_in_one_run_of_all_items(model, tmp_path, edit: Edit):
    view = model.edited(edit)
    memory = view.run_with_cache(ITEMS, NAMES, positions=latent)[1]
    agree(view.cache_to_disk(ITEMS, tmp_path / "a", NAMES, positions=latent, shard_items=2), memory)
    assert open_cache(tmp_path / "a").edited == ("hook_latent",)


def sliced(memory: ActivationCache) -> Callable[[Sequence[Item]], ActivationCache]:
    """Stands for the model: cuts items out of a finished cache."""

    def compute(part: Sequence[Item]) -> ActivationCache:
        rows = [ITEMS.index(item) for item in part]
        mine = torch.isin(memory.positions.rows, torch.tensor(rows))
        positions = Positions(memory.positions.rows[mine] - rows[0], memory.positions.columns[mine])
        values = {name: memory.flat(name)[torch.isin(memory.where(name).rows, torch.tensor(rows))] for name in memory}
        return ActivationCache(values, positions, take(memory.unrolled, rows))

    return compute


def stream(memory: ActivationCache, folder: Path, compute=None, items=ITEMS, **plan: object) -> ActivationCache:
    return stream_to_disk(
        items, folder, compute or sliced(memory), plan={"seed": 0, **plan}, shard_items=2, readout=memory.readout
    )


def in_a_child(work: Callable[[], object]) -> tuple[int, int]:
    """Run `work` in a forked process; its id and its status: the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child, os.waitpid(child, 0)[1]


def test_killed_before_and_after_every_change_of_a_name_and_resumed_to_the_same_bytes(memory, tmp_path):
    whole = bytes_of(stream(memory, tmp_path / "whole") and tmp_path / "whole")
    real, killed = os.replace, 0
    for before in (True, False):
        for at in range(100):
            folder, count = tmp_path / f"{at}-{before}", [0]

            def dying(source, target, count=count, at=at, before=before) -> None:
                if not before:
                    real(source, target)
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                if before:
                    real(source, target)

            def work(folder=folder, dying=dying) -> None:
                cache_writing.os.replace = dying
                stream(memory, folder)

            _, status = in_a_child(work)
            if status == 0:
                break
            killed += 1
            assert not folder.exists() or bytes_of(folder) == whole, "a folder that is there is complete"
            stream(memory, folder)
            assert bytes_of(folder) == whole and not folder.with_name(folder.name + ".partial").exists()
    assert killed == 2 * (1 + 4 * 2 + 1), "the plan, a file and a record a shard, and the folder"


def test_killed_at_random_moments_and_resumed_to_the_same_bytes(memory, tmp_path):
    whole = bytes_of(stream(memory, tmp_path / "whole") and tmp_path / "whole")
    draw, killed = random.Random(0), 0
    for trial in range(12):
        folder = tmp_path / str(trial)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    stream(memory, folder)
                finally:
                    os._exit(0)
            time.sleep(draw.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        stream(memory, folder)
        assert bytes_of(folder) == whole
    assert killed > 6


def test_shards_that_are_finished_are_not_computed_again(memory, tmp_path):
    calls: list[list[str]] = []

    def failing(part: Sequence[Item]) -> ActivationCache:
        calls.append([item.id for item in part])
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return sliced(memory)(part)

    with pytest.raises(RuntimeError, match="power cut"):
        stream(memory, tmp_path / "a", failing)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ResultsError, match="still being written"):
        open_cache(tmp_path / "a.partial")
    stream(memory, tmp_path / "a", failing)
    ids = [item.id for item in ITEMS]
    assert calls == [ids[:2], ids[2:4], ids[4:6], ids[4:6], ids[6:]]
    stream(memory, tmp_path / "a", failing)
    assert len(calls) == 5, "a finished folder is opened"


@pytest.mark.parametrize("finished", [True, False])
def test_another_plan_is_refused_with_the_differences(memory, tmp_path, finished: bool):
    def broken(part: Sequence[Item]) -> ActivationCache:
        raise RuntimeError

    with pytest.raises(RuntimeError) if not finished else nullcontext():
        stream(memory, tmp_path / "a", None if finished else broken)
    other = [replace(ITEMS[0], question="Why?"), *ITEMS[1:]]
    for change, message in (
        ({"seed": 1}, "seed: 0 there, 1 now"), ({"layer": 2}, r"layer: '\(none\)' there, 2 now"),
        ({"items": other}, f"items.{ITEMS[0].id}: "), ({"items": ITEMS[1:]}, rf"items.{ITEMS[0].id}: .* there, '\(none\)' now"),
        ({"items": ITEMS[::-1]}, "the same in another order"),
    ):  # fmt: skip
        with pytest.raises(ResultsError, match=message):
            stream(memory, tmp_path / "a", **change)
    stream(memory, tmp_path / "a")


def test_an_image_that_changed_is_another_plan(memory, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, item in zip(paths, ITEMS, strict=False):
        item.image.save(path)
    on_disk = [replace(item, image=path) for item, path in zip(ITEMS[:2], paths, strict=True)]
    digests = [streaming.item_digest(item) for item in (*on_disk, *ITEMS[:2])]
    assert len(set(digests)) == 4
    ITEMS[-1].image.save(paths[0])
    assert streaming.item_digest(on_disk[0]) != digests[0]
    paths[1].unlink()
    with pytest.raises(ItemError, match=f"of item {ITEMS[1].id!r} cannot be read"):
        streaming.item_digest(on_disk[1])


def test_a_shard_that_changed_while_it_waited_is_an_error(memory, tmp_path):
    def second(part: Sequence[Item]) -> ActivationCache:
        if part[0] is not ITEMS[0]:
            raise RuntimeError
        return sliced(memory)(part)

    with pytest.raises(RuntimeError):
        stream(memory, tmp_path / "a", second)
    path = tmp_path / "a.partial" / "shards" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ResultsError, match=r"shard-00000\.safetensors was changed"):
        stream(memory, tmp_path / "a")


def test_folders_that_hold_something_else_are_left_alone(memory, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ResultsError, match="not an empty folder"):
        stream(memory, tmp_path)
    with pytest.raises(SettingError, match="shard_items = 0"):
        stream_to_disk(ITEMS, tmp_path / "a", sliced(memory), plan={}, shard_items=0, readout=memory.readout)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_missing_role_is_an_error_and_nothing_takes_the_folders_name(model, tmp_path):
    with pytest.raises(RoleError, match="absent"):
        model.cache_to_disk(ITEMS, tmp_path / "a", "resid_post", positions=latent[17])
    assert not (tmp_path / "a").exists()


def test_one_activation_is_read_without_the_others_and_without_images(tmp_path):
    """On a shipped model, from images on disk that are gone when the folder is opened."""
    model = replace(pl.load("tiny/lvr"), batch_size=2)
    items = []
    for number, item in enumerate(pl.load_items("shapes", n=4)):
        item.image.save(tmp_path / f"{number}.png")
        items.append(replace(item, image=tmp_path / f"{number}.png"))
    logits, memory = model.run_with_cache(items, positions=answer.source)
    model.cache_to_disk(items, tmp_path / "a", positions=answer.source)
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    cache = pl.open_cache(tmp_path / "a").with_readout(model.readout)
    torch.testing.assert_close(cache["resid_post", 1], memory["resid_post", 1], rtol=1e-4, atol=1e-4)
    shares = cache.logit_attrs(cache.decompose_resid(), logits.argmax(-1))
    torch.testing.assert_close(shares.sum(0), logits.amax(-1), rtol=1e-4, atol=1e-3)
