"""Shards, dtypes, devices and conversion: what cannot be done faithfully is refused, and nothing is left half-done."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError, SettingError
from prismlens.models import checkpoint, draft
from prismlens.models.checkpoint import load_checkpoint, save_checkpoint, weight_hash
from prismlens.models.convert import convert, save_released
from prismlens.trace.load import load
from tests.released import Pair, build, reweigh, same_weights, stored


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build()


@pytest.fixture
def released(pair: Pair, tmp_path: Path) -> Path:
    save_released(*pair, tmp_path / "released")
    return tmp_path / "released"


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ shards, dtypes


@pytest.mark.parametrize("save", [save_checkpoint, save_released])
def test_shards_are_no_larger_than_asked_and_lack_nothing(save: Callable, pair: Pair, tmp_path: Path):
    save(*pair, tmp_path / "m", max_shard_size="110KB")
    files = sorted(tmp_path.glob("m/*.safetensors"))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 5 and set(index.values()) == {file.name for file in files}
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 110_000
        assert all(index[name] == file.name for name in held)
    assert same_weights(load_checkpoint(tmp_path / "m")[0], pair[0])
    files[2].unlink()
    with pytest.raises(
        CheckpointError, match=rf"names {files[2].name}, which is not there[\s\S]*download that broke off"
    ):
        load_checkpoint(tmp_path / "m")


def test_a_shard_cut_short_is_refused(pair: Pair, tmp_path: Path):
    save_released(*pair, tmp_path / "m", max_shard_size="110KB")
    shard = sorted(tmp_path.glob("m/*.safetensors"))[3]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"could not be read: .*not fully covered"):
        load_checkpoint(tmp_path / "m")


def test_the_dtype_is_that_of_the_files_or_the_one_named(tmp_path: Path):
    model, processor = build(torch.bfloat16)
    save_released(model, processor, tmp_path / "m")
    for asked, given in {
        "auto": torch.bfloat16, "float16": torch.float16, "torch.float64": torch.float64, torch.float16: torch.float16
    }.items():  # fmt: skip
        assert {value.dtype for value in load_checkpoint(tmp_path / "m", dtype=asked)[0].parameters()} == {given}
    assert same_weights(load(tmp_path / "m", dtype="auto").hf, model)
    assert load(tmp_path / "m").hf.dtype == torch.float32
    convert(tmp_path / "m", tmp_path / "half", dtype="float16")
    assert {value.dtype for value in stored(tmp_path / "half").values()} == {torch.float16}


@pytest.mark.parametrize("dtype", ["flaot32", "int8", torch.int8, "nn", torch.float8_e4m3fn])
def test_a_dtype_in_which_no_model_runs_is_refused(released: Path, dtype: Any):
    with pytest.raises(
        CheckpointError, match=r"dtype = [\s\S]*needed: \"auto\" or one of float64, float32, float16, bf"
    ):
        load(released, dtype=dtype)


def test_files_of_several_dtypes_are_not_made_one_in_silence(released: Path, tmp_path: Path):
    reweigh(released, lambda weights: weights.update({"model.norm.weight": weights["model.norm.weight"].half()}))
    for ask in (lambda: load(released, dtype="auto"), lambda: convert(released, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=r"holds float32 \(.*float16 \(model\.norm\.weight\)[\s\S]*name one"):
            ask()
    assert not (tmp_path / "out").exists()
    convert(released, tmp_path / "out", dtype="float32")


def test_quantised_weights_are_refused(released: Path):
    reweigh(released, lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"stores model\.norm\.weight as I8[\s\S]*quantised"):
        load_checkpoint(released)


# ------------------------------------------------------------------------------------------------------------- devices

SPREAD = {
    "model.visual": "cpu", "model.language_model.embed_tokens": "cpu", "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk", "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu", "lm_head": "cpu", "hook_latent": "cpu",
}  # fmt: skip


def test_a_model_spread_by_a_device_map_answers_the_same_and_is_not_moved(released: Path, tmp_path: Path):
    whole, spread = load(released), load(released, device_map=SPREAD)
    assert [name for name, value in spread.hf.named_parameters() if value.is_meta]  # a layer does lie on disk
    assert spread.revision == whole.revision
    items = shapes(2, seed=5)
    one, other = whole.generate(items, max_new_tokens=3), spread.generate(items, max_new_tokens=3)
    assert one.text == other.text and torch.equal(one.latents, other.latents)
    given = (spread.hf, spread.processor)
    assert load(given).revision == whole.revision
    with pytest.raises(SettingError, match=r"device = 'cpu' for a model that lies on cpu, disk[\s\S]*leave out device"):
        load(given, device="cpu")
    with pytest.raises(CheckpointError, match=r"weights are offloaded \(model\.language_model\.layers\.1\."):
        save_released(*given, tmp_path / "out")
    save_checkpoint(*given, tmp_path / "out")
    assert same_weights(load_checkpoint(tmp_path / "out")[0], whole.hf)


def test_one_device_may_be_named_either_way(released: Path):
    assert load(released, device_map="cpu").revision == load(released, device="cpu").revision
    with pytest.raises(SettingError, match=r"device = 'cpu' and device_map = 'auto'\n  needed: one of them"):
        load(released, device="cpu", device_map="auto")


def test_a_given_model_keeps_its_dtype_and_place(pair: Pair):
    for setting in ({"dtype": torch.float32}, {"device_map": "auto"}):
        with pytest.raises(SettingError, match=r"for a model that is passed in"):
            load(pair, **setting)
    assert load(pair).hf is pair[0]


def test_a_device_map_without_accelerate_names_the_extra(released: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "is_accelerate_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"without the library accelerate[\s\S]*pip install 'prismlens\[train\]'"):
        load(released, device_map="auto")
    load(released)


# ---------------------------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize("to", ["released", "prismlens"])
def test_the_source_is_untouched_and_a_full_folder_refused(released: Path, tmp_path: Path, to: str):
    before = contents(released)
    convert(released, tmp_path / "new", to=to)
    assert contents(released) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "released"]
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        convert(released, released, to=to)
    assert contents(released) == before


def test_a_shipped_model_is_converted_with_its_manifest(tmp_path: Path):
    with pytest.warns(UserWarning, match="latent_close"):
        convert("tiny/lvr", tmp_path / "m", to="released")
    assert weight_hash(load_checkpoint(tmp_path / "m")[0]) == weight_hash(load_checkpoint("tiny/lvr")[0])
    assert (tmp_path / "m" / "training.json").read_bytes() == (checkpoint.ZOO / "lvr" / "training.json").read_bytes()


def test_an_unknown_format_is_refused_before_anything_is_written(released: Path, tmp_path: Path):
    with pytest.raises(SettingError, match=r"to = 'onnx'\n  needed: one of 'prismlens', 'released'"):
        convert(released, tmp_path / "out", to="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["space", "quota", "in a library"],
)
@pytest.mark.parametrize("to", ["released", "prismlens"])
def test_a_full_disk_leaves_nothing_and_is_named(
    released: Path, tmp_path: Path, monkeypatch, to: str, error: Exception
):
    import transformers.modeling_utils as writer

    real, written = writer.safe_save_file, []

    def fail(weights: dict, path: str, **rest: Any) -> None:
        if len(written) == 3:
            raise error
        written.append(path)
        real(weights, path, **rest)

    monkeypatch.setattr(writer, "safe_save_file", fail)
    with pytest.raises(
        CheckpointError, match=r"could not be written: [\s\S]*more than [\d,]{6,} bytes[\s\S]*disk is full"
    ):
        convert(released, tmp_path / "out", to=to, max_shard_size="110KB")
    assert len(written) == 3 and [path.name for path in tmp_path.iterdir()] == ["released"]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), KeyboardInterrupt(), MemoryError()])
def test_any_other_interruption_leaves_nothing_and_keeps_its_name(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), draft.draft(tmp_path / "out") as made:
        (made / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_read_leaves_no_folder(released: Path, tmp_path: Path):
    shutil.copytree(released, tmp_path / "bad")
    (tmp_path / "bad" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="the processor of"):
        convert(tmp_path / "bad", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "released"]
