"""Folders of the released code: read as they are, and written as that code reads them, without losing a bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError
from prismlens.models.checkpoint import load_checkpoint, save_checkpoint, weight_hash
from prismlens.models.convert import convert, save_released
from prismlens.models.formats import RELEASED_FILES, from_released, released_name, to_released
from prismlens.trace.load import load
from tests.released import CASES, STAGE_IDS, Pair, build, config_of, reweigh, rewrite, same_weights, settings_of, stored


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Pair, dict[str, tuple[int, ...]]]:
    settings, dtype, extra = CASES[request.param]
    return build(dtype, **settings), extra


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build()


@pytest.fixture
def released(pair: Pair, tmp_path: Path) -> Path:
    save_released(*pair, tmp_path / "released")
    return tmp_path / "released"


# ------------------------------------------------------------------------------------------------------------ writing


def test_weights_are_written_under_the_names_that_the_released_code_gives_them(case, tmp_path: Path):
    (model, processor), extra = case
    save_released(model, processor, tmp_path / "m")
    weights = stored(tmp_path / "m")
    for name, shape in {
        "model.embed_tokens.weight": (409, 64), "model.layers.1.self_attn.q_proj.bias": (64,),
        "model.layers.0.mlp.down_proj.weight": (64, 192), "model.norm.weight": (64,),
        "visual.patch_embed.proj.weight": (64, 3, 2, 7, 7), "visual.blocks.1.attn.qkv.weight": (192, 64),
        "visual.merger.ln_q.weight": (64,), **extra,
    }.items():  # fmt: skip
        assert tuple(weights[name].shape) == shape, name
    assert not any("language_model" in name or name.startswith("model.visual") for name in weights)
    assert {name for name in weights if not name.startswith(("model.", "visual."))} == set(extra)
    assert len(weights) == len(dict(model.named_parameters()))
    assert {value.dtype for value in weights.values()} == {model.dtype}


def test_the_config_says_everything_where_the_released_code_looks_for_it(tmp_path: Path):
    model, processor = build(torch.bfloat16, lvr_head="gated", latent_end_token=True, **STAGE_IDS)
    save_released(model, processor, tmp_path / "m")
    config = config_of(tmp_path / "m")
    ids = {
        "lvr_start_id": 7, "lvr_id": 8, "lvr_latent_end_id": 9, "lvr_end_id": 10, **STAGE_IDS, "image_token_id": 5,
        "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4, "eos_token_id": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 192, "hidden_act": "silu", "vocab_size": 409, "num_hidden_layers": 2,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True,
    }  # fmt: skip
    head = {"lvr_head": True, "lvr_head_type": "glu", "latent_end_token": True}
    for part in (config, config["text_config"]):
        assert (ids | text | head).items() <= part.items()
        assert "rope_parameters" not in part
    assert config["architectures"] == ["QwenWithLVR"] and config["model_type"] == "qwen2_5_vl"
    assert config["torch_dtype"] == "bfloat16" and "dtype" not in config
    assert config["vision_config"]["model_type"] == "qwen2_5_vl" and "rope_parameters" not in config["vision_config"]


def test_a_model_without_head_says_so_because_the_released_class_asks(released: Path):
    head = {"lvr_head": False, "lvr_head_type": "simple", "latent_end_token": False}
    assert head.items() <= config_of(released).items()


def test_the_processor_is_written_without_what_transformers_4_stumbles_over(released: Path, pair: Pair):
    tokenizer = json.loads((released / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "backend" not in tokenizer
    images = json.loads((released / "preprocessor_config.json").read_text())
    assert images["image_processor_type"] == "Qwen2VLImageProcessor"
    assert images["processor_class"] == tokenizer["processor_class"] == "Qwen2_5_VLProcessor"
    again, items = load_checkpoint(released)[1], shapes(2, seed=3)
    one, other = pair[1](items), again(items)
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.pixel_values, other.pixel_values)


def test_lists_of_special_tokens_get_the_name_that_transformers_4_reads():
    """transformers 4 takes ``extra_special_tokens`` for a dict and fails on a list."""
    made = RELEASED_FILES["tokenizer_config.json"](
        {"extra_special_tokens": ["<|a|>"], "tokenizer_class": "Qwen2Tokenizer"}
    )
    assert made["additional_special_tokens"] == ["<|a|>"] and "extra_special_tokens" not in made
    assert made["tokenizer_class"] == "Qwen2Tokenizer"
    named = {"extra_special_tokens": {"image_token": "<|a|>"}}
    assert named.items() <= RELEASED_FILES["tokenizer_config.json"](named).items()


@pytest.mark.parametrize("save", [save_checkpoint, save_released])
def test_saving_gives_the_config_back(save: Callable, tmp_path: Path):
    model, processor = build(torch.bfloat16)
    before = model.config.to_dict()
    save(model, processor, tmp_path / "m")
    assert model.config.to_dict() == before and before["architectures"] is None


def test_settings_that_the_released_code_ignores_are_kept_and_named(tmp_path: Path):
    rules = [{"query": "answer", "key": "image"}]
    model, processor = build(visibility=rules, latent_close=[9, 10])
    with pytest.warns(UserWarning, match=r"does not know visibility, latent_close and will compute without"):
        save_released(model, processor, tmp_path / "m")
    again, _ = load_checkpoint(tmp_path / "m")
    assert again.config.visibility == rules and list(again.config.latent_close) == [9, 10]


def test_a_vision_tower_that_the_released_code_cannot_have_is_refused(pair: Pair):
    config = type(pair[0].config).from_dict(pair[0].config.to_dict())
    config.vision_config.rope_parameters = {"rope_type": "axial", "rope_theta": 500.0}
    with pytest.raises(CheckpointError, match=r"rope_theta is 500\.0\n  needed: 10000\.0"):
        to_released(config)


# --------------------------------------------------------------------------------------------------------- round trip


def test_what_is_written_in_the_released_format_is_read_back_bit_for_bit(case, tmp_path: Path):
    (model, processor), _ = case
    save_released(model, processor, tmp_path / "m")
    again, processor_again = load_checkpoint(tmp_path / "m", dtype="auto")
    assert same_weights(model, again)
    assert settings_of(model) == settings_of(again)
    tied = again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert tied is again.config.tie_word_embeddings is model.config.tie_word_embeddings
    items = shapes(2, seed=5)
    one, other = load((model, processor)), load((again, processor_again))
    ours, theirs = one.generate(items, max_new_tokens=4), other.generate(items, max_new_tokens=4)
    assert ours.text == theirs.text and torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.unrolled.input_ids, theirs.unrolled.input_ids) and ours.latents.shape[1] >= 3


def test_there_and_back_again_is_the_same_folder(case, tmp_path: Path):
    (model, processor), _ = case
    save_checkpoint(model, processor, tmp_path / "a", manifest={"seed": 0, "note": "ä"})
    assert convert(tmp_path / "a", tmp_path / "b", to="released", max_shard_size="100KB") == tmp_path / "b"
    convert(tmp_path / "b", tmp_path / "c")
    one, two, three = stored(tmp_path / "a"), stored(tmp_path / "b"), stored(tmp_path / "c")
    assert {released_name(name) for name in one} == set(two) and set(one) == set(three)
    assert all(
        torch.equal(value, two[released_name(name)]) and torch.equal(value, three[name]) for name, value in one.items()
    )
    a, c = (load_checkpoint(tmp_path / name)[0] for name in "ac")
    assert settings_of(a) == settings_of(c) and weight_hash(a) == weight_hash(c)
    for name in "bc":
        assert (tmp_path / name / "training.json").read_bytes() == (tmp_path / "a" / "training.json").read_bytes()


def test_a_model_read_under_released_names_is_saved_under_todays(released: Path, tmp_path: Path):
    save_checkpoint(*load_checkpoint(released), tmp_path / "m")
    assert all(name.startswith(("model.language_model.", "model.visual.")) for name in stored(tmp_path / "m"))
    plain, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_weights(plain, load_checkpoint(tmp_path / "m")[0])


def test_how_a_checkpoint_decodes_is_kept(pair: Pair, tmp_path: Path):
    model, processor = build()
    model.generation_config.eos_token_id = [2, 0]
    model.generation_config.repetition_penalty = 1.05
    save_released(model, processor, tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c")
    again = load_checkpoint(tmp_path / "c")[0].generation_config
    assert again.eos_token_id == [2, 0] and again.repetition_penalty == 1.05


# ------------------------------------------------------------------------------------------------------------ reading

WRITTEN_BY_4 = {
    "architectures": ["QwenWithLVR"], "attention_dropout": 0.0, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 192, "latent_end_token": False,
    "loss_lvr_fct": "mse", "lvr_end_id": 10, "lvr_head": False, "lvr_head_type": "simple", "lvr_id": 8,
    "lvr_latent_end_id": 9, "lvr_start_id": 7, "max_position_embeddings": 1024, "max_window_layers": 80,
    "model_type": "qwen2_5_vl", "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"}, "rope_theta": 10000.0,
    "sliding_window": None, "torch_dtype": "float32", "transformers_version": "4.54.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 409,
    "text_config": {
        "architectures": ["QwenWithLVR"], "attention_dropout": 0.0, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 64, "image_token_id": 5, "initializer_range": 0.02, "intermediate_size": 192,
        "layer_types": ["full_attention", "full_attention"], "lvr_end_id": 10, "lvr_id": 8, "lvr_latent_end_id": 9,
        "lvr_start_id": 7, "max_position_embeddings": 1024, "max_window_layers": 80, "model_type": "qwen2_5_vl_text",
        "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "float32",
        "use_cache": True, "use_sliding_window": False, "video_token_id": 6, "vision_end_token_id": 4,
        "vision_start_token_id": 3, "vocab_size": 409,
    },
    "vision_config": {
        "depth": 2, "fullatt_block_indexes": [0, 1], "hidden_act": "silu", "hidden_size": 64, "in_channels": 3,
        "initializer_range": 0.02, "intermediate_size": 192, "model_type": "qwen2_5_vl", "num_heads": 4,
        "out_hidden_size": 64, "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "tokens_per_second": 4, "torch_dtype": "float32", "window_size": 56,
    },
}  # fmt: skip
"""A config as transformers 4 writes it: image ids and the tie stand in text_config alone, and nothing on entry."""


def test_a_config_as_transformers_4_writes_it_is_read(released: Path, pair: Pair):
    (released / "config.json").write_text(json.dumps(WRITTEN_BY_4))
    model, processor = load_checkpoint(released)
    assert same_weights(model, pair[0])
    ours = settings_of(pair[0]) | {"latent_entry": "emitted", "latent_steps": 8, "loss_lvr_fct": "mse"}
    assert settings_of(model) | {"latent_end_token": False} == ours | {"latent_end_token": False}
    assert model.config.image_token_id == 5 and model.lm_head.weight is model.get_input_embeddings().weight
    assert not processor.start


def test_the_first_name_of_rotary_sections_is_understood(released: Path, pair: Pair):
    def old(config: dict[str, Any]) -> None:
        for part in (config, config["text_config"]):
            part["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 6, 6]}

    rewrite(released, old)
    rope = load_checkpoint(released)[0].config.text_config.rope_parameters
    assert rope == pair[0].config.text_config.rope_parameters
    assert rope == {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}


def test_an_id_may_stand_in_one_place_only(released: Path):
    def move(config: dict[str, Any]) -> None:
        for field in ("lvr_id", "lvr_start_id"):
            del config[field]
        del config["text_config"]["lvr_end_id"]

    rewrite(released, move)
    config = load_checkpoint(released)[0].config
    assert (config.lvr_start_id, config.lvr_id, config.lvr_end_id) == (7, 8, 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lvr_id", 12), ("lvr_end_id", 3), ("image_token_id", 6), ("eos_token_id", 1), ("tie_word_embeddings", False)],
)
def test_a_config_that_contradicts_itself_is_refused(released: Path, field: str, value: Any):
    was = config_of(released)[field]
    rewrite(released, lambda config: config["text_config"].update({field: value}))
    message = rf"has {field} = {was!r} at its top level and {value!r} in text_config\n  needed: the same value in both"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(released)


def test_the_ids_of_stages_are_those_of_the_tokenizer(tmp_path: Path):
    save_released(*build(**STAGE_IDS), tmp_path / "m")

    def swap(config: dict[str, Any]) -> None:
        for part in (config, config["text_config"]):
            part["ctx_end_id"] = 13

    rewrite(tmp_path / "m", swap)
    with pytest.raises(CheckpointError, match=r"<\|ctx_end\|> is 12 in the tokenizer and 13 in the config"):
        load_checkpoint(tmp_path / "m")


def test_todays_config_is_left_as_it_is(pair: Pair, tmp_path: Path):
    save_checkpoint(*pair, tmp_path / "m")
    raw = config_of(tmp_path / "m")
    assert from_released(raw) == raw


def test_an_output_that_is_not_the_embeddings_it_is_tied_to_is_refused(released: Path):
    reweigh(released, lambda weights: weights.update({"lm_head.weight": torch.ones(409, 64)}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \(another than the embeddings"):
        load_checkpoint(released)


@pytest.mark.parametrize("kind", ["released", "prismlens"])
def test_weights_of_a_head_that_the_config_does_not_have_are_refused(pair: Pair, tmp_path: Path, kind: str):
    save = {"released": save_released, "prismlens": save_checkpoint}[kind]
    save(*pair, tmp_path / "m")
    reweigh(tmp_path / "m", lambda weights: weights.update({"lvr_latent_end_emb": torch.ones(64)}))
    with pytest.raises(CheckpointError, match=r"lvr_latent_end_emb \(unexpected\)"):
        load_checkpoint(tmp_path / "m")
