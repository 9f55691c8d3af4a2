"""Model folders: what is written is read back bit for bit, and whatever is wrong with a folder is said before it is used."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError
from prismlens.models import checkpoint
from prismlens.models.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    weight_hash,
    zoo_manifest,
    zoo_names,
)
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.models.visibility import LayerMasks, causal
from prismlens.training.architecture import initialise, tiny_config, tiny_processor

RULES = [{"query": "answer", "key": "latent", "layers": [1]}, {"query": "options", "key": "image"}]
WEIGHT = "model.language_model.layers.0.mlp.up_proj.weight"
Edit = Callable[[Path], None]
Pair = tuple[LVRForConditionalGeneration, LVRProcessor]


@pytest.fixture(scope="module")
def pair() -> Pair:
    processor = tiny_processor(start=True)
    config = tiny_config(
        processor.tokenizer, width=64, layers=2, latent_steps=3, latent_close=[9, 10], latent_exit="end_token",
        visibility=RULES,
    )  # fmt: skip
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, 0)
    return model, processor


@pytest.fixture(scope="module")
def saved(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "deep" / "m"
    save_checkpoint(*pair, folder, manifest={"seed": 0})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def configured(**fields: object) -> Edit:
    """Set fields of config.json; `...` removes one."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | fields
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return edit


def weighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Change the weights on disk."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def sharded(second: str | None) -> Edit:
    """Split the weights in two, the second half in a file of that name (None: not written, though the index names it)."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names, name = sorted(weights), second or "b.safetensors"
        halves = {"a.safetensors": names[:20], name: names[20:]}
        save_file({key: weights[key] for key in names[:20]}, folder / "a.safetensors", {"format": "pt"})
        rest = {key: weights[key] for key in names[20:]}
        if second is not None:
            save_file(rest, folder / name, {"format": "pt"}) if name.endswith("safetensors") else torch.save(
                rest, folder / name
            )
        index = {key: file for file, keys in halves.items() for key in keys}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    return edit


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def pickled(folder: Path, name: str = "pytorch_model.bin") -> Path:
    """Write a pickle that betrays its being opened; returns the file that it would create."""
    marker = folder.parent / "opened"
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    return marker


def refused(folder: Path | str) -> CheckpointError:
    """The error of loading; every one says all four things."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    error = caught.value
    assert error.given and error.needed and error.cause and error.fix, f"incomplete: {error}"
    return error


# --------------------------------------------------------------------------------------------------------- round trip


def test_what_is_saved_is_loaded_bit_for_bit(pair: Pair, saved: Path):
    model, processor = pair
    again, processor_again = load_checkpoint(saved)
    assert not again.training and isinstance(again, LVRForConditionalGeneration)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert weight_hash(again) == weight_hash(model)
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    for field in (
        "latent_entry",
        "latent_exit",
        "latent_steps",
        "lvr_start_id",
        "lvr_id",
        "lvr_latent_end_id",
        "lvr_end_id",
    ):
        assert getattr(again.config, field) == getattr(model.config, field)
    assert again.config.visibility == RULES and again.rules == model.rules and len(again.rules) == 2
    assert list(again.config.latent_close) == [9, 10]
    items = shapes(3, seed=1)
    one, other = processor(items), processor_again(items)
    for name in ("input_ids", "segments", "patches", "grids", "pixel_values", "image_grid_thw"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert processor_again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


@pytest.mark.parametrize(("entry", "start"), [("forced", True), ("emitted", False), ("none", False)])
def test_the_prompt_ends_with_the_start_marker_only_where_entry_is_forced(folder: Path, entry: str, start: bool):
    configured(latent_entry=entry)(folder)
    model, processor = load_checkpoint(folder)
    assert processor.start is start
    assert (processor(shapes(1, seed=0)).input_ids[0, -1] == model.config.lvr_start_id).item() is start


@torch.no_grad()
def test_plain_transformers_reads_the_folder_and_computes_the_same(pair: Pair, saved: Path):
    model, processor = pair
    plain, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ids = processor.tokenizer("What is the color of the red?\n(A) red (B) blue", return_tensors="pt")["input_ids"]
    logits = plain.eval()(input_ids=ids).logits
    width = ids.shape[1]
    positions = torch.arange(width).expand(3, 1, -1)
    mask = causal(torch.ones_like(ids).bool(), width)[:, None]
    own = model.step(ids, positions, LayerMasks([mask] * model.n_layers)).logits
    assert (own - logits).abs().max() < 1e-5
    assert logits.std() > 0.1  # not all alike
    assert plain.generation_config.eos_token_id == 2 and plain.generation_config.pad_token_id == 0


def test_only_safetensors_are_written_and_the_manifest_beside_them(saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json", "training.json",
    ]  # fmt: skip
    assert json.loads((saved / "training.json").read_text()) == {"seed": 0}
    assert [path.name for path in saved.parent.iterdir()] == ["m"]
    assert saved.stat().st_mode & 0o777 == 0o755


def test_saving_leaves_the_model_as_it_was(pair: Pair, tmp_path: Path):
    model, processor = pair
    config, generation, before = model.config.to_dict(), model.generation_config, weight_hash(model)
    save_checkpoint(model, processor, tmp_path / "m")
    assert model.config.to_dict() == config and model.generation_config is generation and weight_hash(model) == before


def test_half_precision_on_disk_loads_as_float32_unless_asked_otherwise(folder: Path):
    weighted(lambda weights: weights.update({key: value.bfloat16() for key, value in weights.items()}))(folder)
    configured(dtype="bfloat16")(folder)
    model, _ = load_checkpoint(folder)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    stored = load_file(folder / "model.safetensors")[WEIGHT]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(model.state_dict()[WEIGHT], stored.float())
    half, _ = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


def test_the_hash_changes_with_the_last_bit_of_one_weight(folder: Path, pair: Pair):
    def flip(weights: dict[str, torch.Tensor]) -> None:
        weights[WEIGHT].view(torch.int32)[0, 0] ^= 1

    weighted(flip)(folder)
    assert weight_hash(load_checkpoint(folder)[0]) != weight_hash(pair[0])


def test_shards_are_put_together(folder: Path, pair: Pair):
    sharded("b.safetensors")(folder)
    assert weight_hash(load_checkpoint(folder)[0]) == weight_hash(pair[0])


def test_released_checkpoints_under_the_old_names_of_weights_load(folder: Path, pair: Pair, tmp_path: Path):
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for key in list(weights):
            old = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            weights[old] = weights.pop(key)

    weighted(rename)(folder)
    names = list(load_file(folder / "model.safetensors"))
    assert "model.embed_tokens.weight" in names and not any("language_model" in name for name in names)
    model, processor = load_checkpoint(folder)
    assert weight_hash(model) == weight_hash(pair[0])
    save_checkpoint(model, processor, tmp_path / "again")
    assert weight_hash(load_checkpoint(tmp_path / "again")[0]) == weight_hash(pair[0])


# ------------------------------------------------------------------------------------------------------------- saving


def test_a_save_that_fails_midway_leaves_nothing(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reached = []

    def fail(self: LVRProcessor, folder: str | Path) -> None:
        reached.extend(path.name for path in Path(folder).iterdir())
        raise OSError("disk full")

    monkeypatch.setattr(LVRProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(*pair, tmp_path / "m")
    assert "model.safetensors" in reached  # it did fail midway
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_an_empty_target_as_it_was(pair: Pair, tmp_path: Path):
    (tmp_path / "m").mkdir()
    with pytest.raises(TypeError):
        save_checkpoint(*pair, tmp_path / "m", manifest={"seed": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["m"] and not any((tmp_path / "m").iterdir())
    save_checkpoint(*pair, tmp_path / "m")
    assert (tmp_path / "m" / "config.json").exists()


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_a_target_that_holds_something_is_refused_and_kept(pair: Pair, tmp_path: Path, kind: str):
    target = tmp_path / "m"
    inside = target if kind == "file" else target / "mine.txt"
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("keep me")
    with pytest.raises(
        CheckpointError, match=r"exists and is not an empty folder\n  needed: a new folder\n  fix: choose another"
    ):
        save_checkpoint(*pair, target)
    assert inside.read_text() == "keep me" and [path.name for path in tmp_path.iterdir()] == ["m"]


# ------------------------------------------------------------------------------------------------------------- safety


def test_code_in_the_folder_is_never_run(folder: Path, pair: Pair, tmp_path: Path):
    marker = tmp_path / "ran"
    for name in ("modeling_evil.py", "evil.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")
    configured(auto_map={name: "modeling_evil.Evil" for name in classes}, architectures=["Evil"])(folder)
    for file, fields in (
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
        ),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"}}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    model, _ = load_checkpoint(folder)
    assert weight_hash(model) == weight_hash(pair[0])
    assert not marker.exists()
    exec((folder / "evil.py").read_text())
    assert marker.exists()  # control: the trap works


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_alone_are_refused_unopened(folder: Path, name: str):
    (folder / "model.safetensors").unlink()
    marker = pickled(folder, name)
    error = refused(folder)
    assert f"holds pickled weights ({name})" in error.given and error.needed == "weights as .safetensors"
    assert "can run code" in error.cause and "convert them" in error.fix
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()  # control: the trap works


def test_pickled_weights_beside_safetensors_are_ignored(folder: Path, pair: Pair):
    marker = pickled(folder)
    assert weight_hash(load_checkpoint(folder)[0]) == weight_hash(pair[0])
    assert not marker.exists()


def test_pickles_that_the_index_or_the_config_names_are_refused(folder: Path, tmp_path: Path):
    named = Path(shutil.copytree(folder, tmp_path / "named"))
    sharded("b.bin")(folder)
    marker = pickled(folder, "b.bin")
    assert "holds pickled weights (b.bin)" in refused(folder).given
    # A config may name its own file of weights; transformers would open this one with torch.load.
    torch.save(load_file(named / "model.safetensors"), named / "adapter_model.bin")
    configured(transformers_weights="adapter_model.bin")(named)
    assert "holds pickled weights (adapter_model.bin)" in refused(named).given
    assert not marker.exists()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_shipped_model_is_answered_with_those_that_exist(saved: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "ZOO", tmp_path / "zoo")
    assert zoo_names() == ()
    assert refused("tiny/lvr").needed == "one of: none"
    for name in ("slot", "lvr"):
        shutil.copytree(saved, tmp_path / "zoo" / name)
    (tmp_path / "zoo" / "half-written").mkdir()
    error = refused("tiny/lrv")
    assert error.given == "no shipped model is called 'tiny/lrv'" and error.needed == "one of: tiny/lvr, tiny/slot"
    assert refused("tiny/../zoo/lvr").needed == error.needed
    assert "tiny/lvr, tiny/slot" in refused("lvr").needed
    assert load_checkpoint("tiny/lvr")[0].config.latent_steps == 3
    assert zoo_manifest("tiny/lvr") == {"seed": 0}
    with pytest.raises(CheckpointError, match="no shipped model is called 'tiny/lrv'"):
        zoo_manifest("tiny/lrv")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "nowhere", ""])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "_read_config", lambda *_: pytest.fail("went on to read it"))
    if name == "":
        assert "has no config.json" in refused(name).given  # the present folder
        return
    error = refused(name)
    assert error.given == f"no model at {name!r}"
    assert "a local folder, or a hub id 'owner/name'" in error.needed and str(tmp_path) in error.fix


def test_a_hub_id_without_network_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    error = refused("owner/no-such-model-anywhere")
    assert (
        error.given.startswith("the config of 'owner/no-such-model-anywhere' could not be read")
        and "no network" in error.cause
    )


def cut(file: str, size: int) -> Edit:
    """Keep the first bytes of a file, or all but the last where `size` is negative."""

    def edit(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:size])

    return edit


def written(file: str, text: str) -> Edit:
    return lambda folder: (folder / file).write_text(text) and None


MARKERS = ("lvr_start_id", "lvr_id", "lvr_latent_end_id", "lvr_end_id")
PLAIN = {name: ... for name in (*MARKERS, "latent_entry", "latent_exit", "latent_steps", "latent_close", "visibility")}

BAD: dict[str, tuple[Edit, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json\n  needed: a model folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no weights\n  needed: weights as \.safetensors"),
    "plain Qwen2.5-VL": (configured(**PLAIN), r"config lacks lvr_start_id, lvr_id, lvr_end_id\n[\s\S]*plain Qwen2\.5-VL, never trained with latents\n  fix: set latent_entry to \"none\""),
    "one marker missing": (configured(lvr_id=...), "config lacks lvr_id\n"),
    "entry": (configured(latent_entry="sometimes"), "config has latent_entry = 'sometimes'\n  needed: one of forced, emitted, none"),
    "exit": (configured(latent_exit="never"), "config has latent_exit = 'never'\n  needed: one of fixed, end_token"),
    "steps": (configured(latent_steps=0), "config has latent_steps = 0\n  needed: a whole number of at least 1"),
    "steps as text": (configured(latent_steps="8"), "config has latent_steps = '8'"),
    "marker outside the vocabulary": (configured(lvr_end_id=409), "token id 409 [\\s\\S]*from 0 to 408"),
    "closing id outside the vocabulary": (configured(latent_close=[9, -1]), "token id -1 "),
    "unknown role": (configured(visibility=[{"query": "answer", "key": "nowhere"}]), "unknown role 'nowhere'\n  needed: one of .*latent"),
    "config cut short": (cut("config.json", 300), r"the config of .* could not be read: .*not a valid JSON"),
    "config is a list": (written("config.json", "[]"), "the config of .* could not be read: "),
    "tokenizer with other ids": (configured(lvr_id=5), r"<\|lvr\|> is 8 in the tokenizer and 5 in the config \(lvr_id\)\n  needed: the same id in both"),
    "other latent end": (configured(lvr_latent_end_id=5), r"<\|lvr_latent_end\|> is 9 in the tokenizer and 5"),
    "other image token": (configured(image_token_id=6), r"<\|image_pad\|> is 5 in the tokenizer and 6"),
    "weights cut short": (cut("model.safetensors", -1000), "the weights of .* could not be read: .*not fully covered[\\s\\S]*cause: a download cut short"),
    "header cut short": (cut("model.safetensors", 100), "the weights of .* could not be read: .*header"),
    "empty weights": (cut("model.safetensors", 0), "the weights of .* could not be read: .*header"),
    "mismatched shape": (weighted(lambda w: w.update({WEIGHT: torch.zeros(3, 3)})), rf"1 weights of .* do not fit its config: {WEIGHT} \(\(3, 3\) instead of \(192, 64\)\)"),
    "mismatched width": (lambda f: configured(text_config=json.loads((f / "config.json").read_text())["text_config"] | {"intermediate_size": 128})(f), r"6 weights of .* \(\(64, 192\) instead of \(64, 128\)\)"),
    "missing key": (weighted(lambda w: w.pop(WEIGHT)), rf"1 weights of .* do not fit its config: {WEIGHT} \(missing\)\n  needed: a weight for every parameter"),
    "missing head": (configured(tie_word_embeddings=False), r"lm_head\.weight \(missing\)"),
    "unexpected key": (weighted(lambda w: w.update({"lvr_head.weight": torch.zeros(3)})), r"1 weights of .* do not fit its config: lvr_head\.weight \(unexpected\)"),
    "a layer too many": (lambda f: configured(text_config=json.loads((f / "config.json").read_text())["text_config"] | {"num_hidden_layers": 1, "layer_types": ["full_attention"]})(f), r"12 weights .*layers\.1\..*\(unexpected\)"),
    "missing shard": (sharded(None), r"the weights of .* could not be read: .*b\.safetensors"),
    "no image processor": (lambda f: (f / "preprocessor_config.json").unlink(), r"the processor of .* could not be read[\s\S]*needed: preprocessor_config\.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "the processor of .* could not be read"),
    "tokenizer cut short": (cut("tokenizer.json", 300), "the processor of .* could not be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_with_what_is_wrong(folder: Path, name: str):
    edit, message = BAD[name]
    edit(folder)
    assert re.search(message, str(refused(folder))), str(refused(folder))


def test_a_rule_without_its_fields_is_refused(folder: Path):
    configured(visibility=[{"query": "answer", "layer": 1}])(folder)
    with pytest.raises(CheckpointError, match=r"visibility rule \{[\s\S]*needed: the fields \"query\" and \"key\""):
        load_checkpoint(folder)


def test_the_fix_for_a_plain_model_works(folder: Path, pair: Pair):
    configured(**{**PLAIN, "latent_entry": "none"})(folder)
    model, processor = load_checkpoint(folder)
    assert weight_hash(model) == weight_hash(pair[0]) and model.rules == () and not processor.start
