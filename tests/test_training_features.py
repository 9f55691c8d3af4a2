"""Merger outputs on disk: what the tower gives, each image once, nothing lost to an interruption, nothing mixed up."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prismlens.data.shapes import shapes
from prismlens.errors import ItemError
from prismlens.training import features
from prismlens.training.features import INDEX, FeatureStore, image_key, tower_features, tower_key
from prismlens.types import Item
from tests.training_cases import base_of, relative, some_items

ITEMS = shapes(12, seed=1)[::2]
"""Six scenes of different sizes."""


@pytest.fixture(scope="module")
def pair():
    return base_of(layers=1)


class Counting:
    """Computes features, remembers which items it was asked for, and fails at a call."""

    def __init__(self, pair, fail_at: int = -1) -> None:
        self.pair, self.fail_at = pair, fail_at
        self.calls: list[list[str]] = []

    def __call__(self, items: Sequence[Item]):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append([item.id for item in items])
        return tower_features(*self.pair, items)


@pytest.fixture
def by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 2)


def keyed(items: Sequence[Item] = ITEMS) -> list[tuple[str, Item]]:
    return [(image_key(item), item) for item in items]


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 84, 3), dtype=np.uint8)).convert(mode)


def item_of(image: Image.Image | Path) -> Item:
    return Item(image, "-", id="x")


@torch.no_grad()
def test_stored_features_are_the_towers(pair, tmp_path: Path, by_two: None):
    model, processor = pair
    store = FeatureStore(tmp_path, tower_key(model, processor))
    store.fill(Counting(pair), keyed(), progress=False)
    again = FeatureStore(tmp_path, tower_key(model, processor))
    for reader in (store, again):
        for key, item in keyed():
            value, (rows, columns) = reader.read(key)
            prompt = processor([item])
            assert relative(value, model.image_features(prompt.pixel_values, prompt.image_grid_thw)) < 1e-5
            assert [rows, columns] == prompt.grids[0].tolist()
    assert len({again.read(key)[1] for key, _ in keyed()}) > 1, "images of several sizes"


@torch.no_grad()
def test_features_do_not_depend_on_the_batch(pair):
    together = tower_features(*pair, [*ITEMS, some_items()[2][0]])
    for item, (value, grid) in zip([*ITEMS, some_items()[2][0]], together, strict=True):
        ((alone, own),) = tower_features(*pair, [item])
        assert grid == own and relative(value, alone) < 1e-5


def test_an_image_is_computed_once_however_often_it_comes(pair, tmp_path: Path, by_two: None):
    store, compute = FeatureStore(tmp_path, "k"), Counting(pair)
    pairs = keyed()
    store.fill(compute, [*pairs[:3], *pairs[:3], pairs[0]], progress=False)
    assert compute.calls == [[ITEMS[0].id, ITEMS[1].id], [ITEMS[2].id]]
    store.fill(compute, pairs, progress=False)
    assert [call for call in compute.calls[2:]] == [[ITEMS[3].id, ITEMS[4].id], [ITEMS[5].id]]
    assert all(key in store for key, _ in pairs) and "other" not in store


def test_an_interrupted_run_goes_on_after_its_last_file(pair, tmp_path: Path, by_two: None):
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, "k").fill(Counting(pair, fail_at=2), keyed(), progress=False)
    compute = Counting(pair)
    store = FeatureStore(tmp_path, "k")
    assert [key in store for key, _ in keyed()] == [True] * 4 + [False] * 2
    store.fill(compute, keyed(), progress=False)
    assert compute.calls == [[ITEMS[4].id, ITEMS[5].id]]
    for key, item in keyed():
        assert relative(store.read(key)[0], tower_features(*pair, [item])[0][0]) < 1e-5


@pytest.mark.parametrize("moment", ["file", "index"])
def test_a_kill_while_writing_leaves_nothing_half_read(
    pair, tmp_path: Path, by_two: None, moment: str, monkeypatch: pytest.MonkeyPatch
):
    """Killed just before the second file, or its index, takes its place: the draft lies there and is never read."""
    replaced, real = [], features.os.replace

    def replace(source: Path, target: Path) -> None:
        if len(replaced) == (2 if moment == "file" else 3):
            raise KeyboardInterrupt
        replaced.append(target)
        real(source, target)

    monkeypatch.setattr(features.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, "k").fill(Counting(pair), keyed(), progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(features, "SHARD", 2)
    store, compute = FeatureStore(tmp_path, "k"), Counting(pair)
    assert [key in store for key, _ in keyed()] == [True] * 2 + [False] * 4
    store.fill(compute, keyed(), progress=False)
    assert compute.calls == [[item.id for item in ITEMS[2:4]], [item.id for item in ITEMS[4:]]]
    for key, item in keyed():
        assert relative(store.read(key)[0], tower_features(*pair, [item])[0][0]) < 1e-5


def test_two_runs_that_fill_one_folder_in_turn_keep_each_others_images(pair, tmp_path: Path, by_two: None):
    one, other = FeatureStore(tmp_path, "k"), FeatureStore(tmp_path, "k")
    one.fill(Counting(pair), keyed(ITEMS[:2]), progress=False)
    other.fill(Counting(pair), keyed(ITEMS[2:4]), progress=False)
    one.fill(Counting(pair), keyed(ITEMS[4:]), progress=False)
    for key, item in keyed():
        assert relative(FeatureStore(tmp_path, "k").read(key)[0], tower_features(*pair, [item])[0][0]) < 1e-5
    shards = [entry[0] for entry in json.loads((tmp_path / "k" / INDEX).read_text()).values()]
    assert shards == [0, 0, 1, 1, 2, 2]


def test_another_tower_or_another_resolution_has_a_folder_of_its_own(tmp_path: Path):
    model, processor = base_of(layers=1)
    key = tower_key(model, processor)
    assert key == tower_key(*base_of(layers=3)), "the language model is no part of it"
    assert key != tower_key(base_of(seed=1, layers=1)[0], processor)
    processor.image_processor.size = {"shortest_edge": 84 * 84, "longest_edge": 98 * 98}
    resized = tower_key(model, processor)
    assert resized != key
    processor = base_of(layers=1)[1]
    with torch.no_grad():
        model.model.visual.merger.mlp[2].bias[0] += 1e-3
    assert len({tower_key(model, processor), key, resized}) == 3
    assert FeatureStore(tmp_path, key).folder != FeatureStore(tmp_path, resized).folder
    assert (tmp_path / key).is_dir()


def test_a_changed_image_has_another_key_and_the_same_image_the_same(tmp_path: Path):
    key = image_key(item_of(picture(0)))
    assert key == image_key(item_of(picture(0).copy())) and len(key) == 32
    changed = picture(0)
    changed.putpixel((3, 3), (1, 2, 3))
    turned = picture(0).resize((42, 168))
    assert len({key, *(image_key(item_of(one)) for one in (picture(1), changed, turned))}) == 4
    path = tmp_path / "a.png"
    picture(0).save(path)
    first = image_key(item_of(path))
    picture(1).save(path)
    assert image_key(item_of(path)) != first
    picture(0).save(path)
    assert image_key(item_of(path)) == first


def test_what_stands_beside_the_pixels_counts_too():
    """The tower sees the upright RGB picture: the same indices under another palette are another picture."""
    one = picture(0, "P")
    other = one.copy()
    other.putpalette([value ^ 255 for value in one.getpalette() or []])
    assert one.tobytes() == other.tobytes()
    assert image_key(item_of(one)) != image_key(item_of(other))
    upright, turned = picture(2), picture(2)
    turned.getexif()[0x0112] = 3
    assert image_key(item_of(upright)) != image_key(item_of(turned))


def test_an_unreadable_image_is_named(tmp_path: Path):
    with pytest.raises(ItemError, match=r"missing\.png' of item 'x' cannot be read"):
        image_key(item_of(tmp_path / "missing.png"))
