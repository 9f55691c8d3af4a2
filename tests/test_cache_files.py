"""A cache on disk is the cache in memory, without images, and every byte of it is checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prismlens.cache import ActivationCache, open_cache
from prismlens.data.images import open_image
from prismlens.data.shapes import shapes
from prismlens.errors import ItemError, ResultsError, SettingError, SiteError
from prismlens.interventions import Edit, Zero
from prismlens.positions import answer, image, latent, question, resolve
from prismlens.trace import PrismModel
from prismlens.unrolled import Unrolled
from tests.cache_cases import model_of

ITEMS = shapes(5, seed=3)
NAMES = ["hook_latent", "resid_pre", "attn_out", "mlp_out", "resid_post"]


@pytest.fixture(scope="module")
def model() -> PrismModel:
    return model_of()


@pytest.fixture(scope="module")
def cache(model) -> ActivationCache:
    """Uneven: questions differ in length."""
    return model.run_with_cache(ITEMS, NAMES, positions=latent | question)[1]


def same_sequences(a: Unrolled, b: Unrolled) -> bool:
    tensors = (
        "input_ids",
        "segments",
        "steps",
        "patches",
        "grids",
        "position_ids",
        "latents",
        "n_latents",
        "answer_first",
        "stages",
    )
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and (a.n_prompt, a.stage_names) == (
        b.n_prompt,
        b.stage_names,
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("read", [ActivationCache.load, open_cache], ids=["load", "open"])
def test_what_was_saved_comes_back_bit_for_bit(cache, tmp_path, read):
    again = read(cache.save(tmp_path / "a"))
    assert list(again) == list(cache) and isinstance(again, ActivationCache)
    assert all(
        torch.equal(again.flat(name), cache.flat(name)) and again[name].shape == cache[name].shape for name in cache
    )
    assert torch.equal(again.positions.rows, cache.positions.rows) and torch.equal(
        again.positions.columns, cache.positions.columns
    )
    assert same_sequences(again.unrolled, cache.unrolled)
    for mine, theirs in zip(again.unrolled.items, ITEMS, strict=True):
        for name in ("id", "group", "category", "question", "options", "answer", "boxes", "meta"):
            assert getattr(mine, name) == getattr(theirs, name), name
        with pytest.raises(ItemError, match="not stored with the activations"):
            open_image(mine.image, mine.id)
    for role in (image.box, latent[-1], answer.first):
        assert torch.equal(resolve(role, again.unrolled).columns, resolve(role, cache.unrolled).columns)


def test_two_saves_are_the_same_bytes_and_a_saved_copy_of_an_opened_one_too(cache, tmp_path):
    first = bytes_of(cache.save(tmp_path / "a"))
    assert first == bytes_of(cache.save(tmp_path / "b")) == bytes_of(open_cache(tmp_path / "a").save(tmp_path / "c"))


def test_decompositions_work_after_loading_and_readouts_need_the_model(cache, model, tmp_path):
    again = ActivationCache.load(cache.save(tmp_path / "a"))
    assert torch.equal(again.decompose_resid(apply_ln=True), cache.decompose_resid(apply_ln=True))
    with pytest.raises(SiteError, match=r"no W_U(.*\n)*.*cache.with_readout\(model.readout\)"):
        again.logit_attrs(again.decompose_resid(), 3)
    whole = again.with_readout(model.readout)
    assert torch.equal(whole.logit_attrs(whole.decompose_resid(), 3), cache.logit_attrs(cache.decompose_resid(), 3))
    with pytest.raises(SettingError, match="fix: load the model"):
        again.with_readout(model_of(seed=1).readout)


def test_a_sliced_cache_and_one_without_batch_axis_keep_what_they_are(model, tmp_path):
    cache = model.run_with_cache(ITEMS[:1], NAMES, positions=latent | question)[1]
    last = cache[..., 0].remove_batch_dim()
    again = ActivationCache.load(last.save(tmp_path / "a"))
    assert again["resid_post", 1].shape == (1, 64) and torch.equal(again["resid_post", 1], last["resid_post", 1])
    assert list(again) == list(last) and "hook_latent" not in again


def test_a_bfloat16_cache_of_a_run_under_an_edit_keeps_its_type_and_says_so(tmp_path):
    view = model_of(dtype=torch.bfloat16).edited(Edit(op=Zero(), positions=latent[0]))
    cache = view.run_with_cache(ITEMS[:2], NAMES, positions=latent)[1]
    again = ActivationCache.load(cache.save(tmp_path / "a"))
    assert again["resid_pre", 1].dtype == torch.bfloat16 and torch.equal(again["resid_pre", 1], cache["resid_pre", 1])
    assert again.edited == ("hook_latent",) and again.manifest == cache.manifest
    assert again.manifest["weights"] == view.revision and len(again.manifest["edits"]) == 1


def test_any_flipped_byte_is_an_error_that_names_the_file(cache, tmp_path, unchecked):
    folder = cache.save(tmp_path / "a")
    for path in folder.iterdir():
        content = path.read_bytes()
        step = max(1, len(content) // 60)
        for place in (*range(0, len(content), step), len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ResultsError, match=path.name):
                ActivationCache.load(folder)
        path.write_bytes(content)
    ActivationCache.load(folder)


def test_missing_and_shortened_files_are_errors_that_name_them(cache, tmp_path):
    folder = cache.save(tmp_path / "a")
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ResultsError, match=path.name):
            open_cache(folder)
        path.unlink()
        with pytest.raises(ResultsError, match=path.name):
            open_cache(folder)
        path.write_bytes(content)


def test_opening_reads_no_activation(cache, tmp_path, unchecked):
    folder = cache.save(tmp_path / "a")
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    start = content.find(cache.flat("blocks.2.hook_mlp_out").numpy().tobytes()[:64])
    assert start > 0
    content[start] ^= 1
    path.write_bytes(content)
    lazy = open_cache(folder)
    assert torch.equal(lazy["mlp_out", 1], cache["mlp_out", 1])
    with pytest.raises(ResultsError, match=r"shard-00000\.safetensors.*'values/blocks.2.hook_mlp_out'"):
        lazy["mlp_out", 2]


def test_changing_what_was_read_changes_nothing_on_disk(cache, tmp_path):
    lazy = open_cache(cache.save(tmp_path / "a"))
    lazy["resid_post", 0].zero_()
    assert torch.equal(lazy["resid_post", 0], cache["resid_post", 0])


def test_a_failed_save_leaves_nothing(cache, tmp_path):
    items = (replace(ITEMS[0], meta={"bad": {1, 2}}), *ITEMS[1:])
    bad = replace(cache, unrolled=replace(cache.unrolled, items=items))
    with pytest.raises(ResultsError, match=rf"{ITEMS[0].id!r} has {{1, 2}} in its meta"):
        bad.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(ResultsError, match="not an empty folder"):
        cache.save(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]


def test_other_versions_and_other_folders_are_refused(cache, tmp_path):
    folder = cache.save(tmp_path / "a")
    path = folder / "manifest.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "version": 99}))
    with pytest.raises(ResultsError, match="version 1"):
        open_cache(folder)
    with pytest.raises(ResultsError, match="cache_to_disk has finished"):
        open_cache(tmp_path)
