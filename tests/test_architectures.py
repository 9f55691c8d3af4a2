"""Other configs of Qwen2.5-VL, plain ones without latents, real sizes without weights, and a second architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from prismlens import trace
from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError, SettingError, SiteError, TrainingError
from prismlens.interventions import Edit, Zero
from prismlens.models.architectures import ARCHITECTURES
from prismlens.models.checkpoint import load_checkpoint, save_checkpoint
from prismlens.models.config import LVRConfig, Qwen3LVRConfig
from prismlens.models.convert import save_released
from prismlens.models.latent import LatentModel
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.models.qwen3_vl import Qwen3LVRForConditionalGeneration
from prismlens.positions import image, latent
from prismlens.sites import PER_LAYER, site, site_names
from prismlens.trace.wiring_reads import modules
from prismlens.training.architecture import tiny_config, tiny_processor
from prismlens.training.prepare import prepare
from prismlens.training.protocol import PROTOCOLS
from prismlens.training.variants import VARIANTS
from prismlens.unrolled import Unrolled

ITEMS = shapes(3, seed=3)
PARTS = tiny_processor(start=True)
STEPS = 3


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def drawn(model: LatentModel, seed: int = 0) -> LatentModel:
    """Every weight drawn, biases and norms too, so that none of them can be forgotten without a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1 * noise + ("norm" in name))
    model.tie_weights()
    return model.eval()


def qwen25(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any) -> LVRConfig:
    base = tiny_config(PARTS.tokenizer, width=64, layers=2, latent_steps=STEPS, latent_close=[9, 10]).to_dict()
    own = base["text_config"] | (text or {})
    own.pop("layer_types")
    towered = base["vision_config"] | {"out_hidden_size": own["hidden_size"]} | (vision or {})
    return LVRConfig(**base | top | {"text_config": own, "vision_config": towered})


def qwen3(deep: tuple[int, ...] = (0, 2), **text: Any) -> Qwen3LVRConfig:
    base = tiny_config(PARTS.tokenizer, width=64, layers=2, latent_steps=STEPS, latent_close=[9, 10]).to_dict()
    top = {k: v for k, v in base.items() if k not in ("text_config", "vision_config", "model_type", "architectures")}
    own = {
        "vocab_size": len(PARTS.tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "eos_token_id": 2, "pad_token_id": 0,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 7, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": list(deep),
    }  # fmt: skip
    return Qwen3LVRConfig(**top | {"text_config": own | text, "vision_config": vision})


def rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}


CONFIGS: dict[str, Any] = {
    "grouped queries": lambda: qwen25({"num_attention_heads": 8, "num_key_value_heads": 2, "rope_parameters": rope(1, 1, 2)}),
    "one key head, three query heads": lambda: qwen25({"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": rope(4, 4, 4)}),
    "as many keys, untied": lambda: qwen25({"num_attention_heads": 4, "num_key_value_heads": 4, "rope_parameters": rope(2, 3, 3)}, tie_word_embeddings=False),
    "one layer, windows, deep tower": lambda: qwen25({"num_hidden_layers": 1}, {"depth": 3, "window_size": 28, "fullatt_block_indexes": [1], "num_heads": 2}),
    "Qwen3-VL": qwen3,
    "Qwen3-VL, tied, other heads": lambda: qwen3((1,), num_attention_heads=2, num_key_value_heads=1, head_dim=32, attention_bias=True, rope_parameters=rope(6, 5, 5)),
    "Qwen3-VL without deepstack": lambda: qwen3(()),
}  # fmt: skip


def build(name: str) -> LatentModel:
    config = CONFIGS[name]()
    return drawn(ARCHITECTURES[config.model_type](config))


def stock_states(hf: LatentModel, run: Unrolled, row: int) -> Tensor:
    """Final states of one row by transformers' own forward of the whole model: no cache, no mask, no code of ours.

    Pixels go in as pixels; latents are put over the embeddings of their slots by a hook.
    """
    plain: Any = (
        Qwen3VLForConditionalGeneration
        if isinstance(hf, Qwen3LVRForConditionalGeneration)
        else Qwen2_5_VLForConditionalGeneration
    )
    stock = plain(hf.config)
    stock.load_state_dict(hf.state_dict())
    columns = run.valid[row].nonzero().flatten()
    ids, steps = run.input_ids[row, columns][None], run.steps[row, columns]
    pixels = PARTS([run.items[row]])

    def feed(_: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, steps >= 0] = run.latents[row, steps[steps >= 0]]
        return output

    stock.eval().model.language_model.embed_tokens.register_forward_hook(feed)
    with torch.no_grad():
        out = stock.model(
            input_ids=ids, pixel_values=pixels.pixel_values, image_grid_thw=pixels.image_grid_thw,
            mm_token_type_ids=(ids == hf.config.image_token_id).int(), use_cache=False,
        )  # fmt: skip
    return out.last_hidden_state[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loop_gives_what_the_stock_class_gives_on_the_whole_sequence(name: str):
    hf = build(name)
    model = trace.load((hf, PARTS))
    model.max_new_tokens = 2
    run = model.generate(ITEMS)
    assert run.steps_taken.tolist() == [STEPS] * 3 and not bool(run.unrolled.valid.all())
    logits, cache = model.run_with_cache(ITEMS, run=run)
    for row in range(len(ITEMS)):
        states = stock_states(hf, run.unrolled, row)
        steps = run.unrolled.steps[row][run.unrolled.valid[row]]
        before = (steps[1:] >= 0).nonzero().flatten()
        assert relative(run.latents[row, : len(before)], states[before]) < 1e-4
        mine = cache.where("unembed.hook_in").rows == row
        assert relative(cache.flat("unembed.hook_in")[mine], states) < 1e-4
        assert relative(logits.reshape(-1, logits.shape[-1])[mine], hf.lm_head(states)) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_every_site_is_sound_and_an_edit_of_latents_matters(name: str):
    model = trace.load((build(name), PARTS), check=False)
    assert model.check().sites == site_names(model.hf.n_layers)
    model.max_new_tokens = 1
    clean, broken = model.generate(ITEMS), trace.corrupt(model).generate(ITEMS)
    assert torch.equal(clean.latents[:, 0], broken.latents[:, 0]) and not torch.equal(clean.latents, broken.latents)


def test_deepstack_is_what_lies_between_a_block_and_the_next():
    hf = build("Qwen3-VL")
    model = trace.load((hf, PARTS))
    _, cache = model.run_with_cache(ITEMS)
    seen = cache.unrolled.segments[cache.positions.rows, cache.positions.columns] == 2
    prompt = PARTS(ITEMS)
    with torch.no_grad():
        tower = hf.tower(prompt.pixel_values, grid_thw=prompt.image_grid_thw)
    for layer in range(3):
        between = cache.flat(f"blocks.{layer + 1}.hook_resid_pre") - cache.flat(f"blocks.{layer}.hook_resid_post")
        assert not bool(between[~seen].any())
        if layer < 2:
            assert relative(between[seen], tower.deepstack_features[layer]) < 1e-5
        else:
            assert not bool(between.any())


def test_a_caller_that_forgets_the_deep_features_is_refused():
    hf = build("Qwen3-VL")
    ids = torch.full((1, 3), hf.config.image_token_id)
    with pytest.raises(SettingError, match="0 deep features with image features\n  needed: 2"):
        hf.deep_inputs(ids == ids, torch.zeros(3, 64), ())
    with pytest.raises(SettingError, match="2 deep features with no image features\n  needed: 0"):
        hf.deep_inputs(ids == ids, None, (torch.zeros(3, 64),) * 2)
    with pytest.raises(SettingError, match="1 deep features for LVRForConditionalGeneration"):
        build("grouped queries").deep_inputs(ids == ids, torch.zeros(3, 64), (torch.zeros(3, 64),))


@pytest.mark.parametrize("name", sorted(Qwen3LVRForConditionalGeneration.refused))
def test_a_site_without_a_meaning_raises_with_the_reason(name: str):
    model = trace.load((build("Qwen3-VL"), PARTS), check=False)
    for ask in (
        lambda: model.run_with_cache(ITEMS, name),
        lambda: model.edited(Edit(op=Zero(), positions=image, site=name)),
    ):
        with pytest.raises(
            SiteError,
            match=rf"'{name}' was asked for on a Qwen3LVR[\s\S]*likely cause: .*(deepstack|order of the rows)",
        ):
            ask()


def test_what_only_qwen25_has_is_refused_for_qwen3(tmp_path: Path):
    hf = build("Qwen3-VL")
    with pytest.raises(
        TrainingError, match=r"base of the class Qwen3LVRForConditionalGeneration\n  needed: a Qwen2\.5-VL"
    ):
        prepare(hf, PARTS, VARIANTS["lvr"], latent_steps=2, protocol=PROTOCOLS["fair"])
    with pytest.raises(CheckpointError, match="a model of the class Qwen3LVRForConditionalGeneration"):
        save_released(hf, PARTS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["as many keys, untied", "Qwen3-VL"])
def test_a_saved_model_comes_back_and_stock_transformers_reads_it(name: str, tmp_path: Path):
    hf = build(name)
    save_checkpoint(hf, PARTS, tmp_path / "model")
    again, _ = load_checkpoint(tmp_path / "model")
    assert type(again) is type(hf) and again.config.lvr_id == hf.config.lvr_id
    ours, theirs = hf.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    plain = type(hf).__mro__[2]
    _, info = plain.from_pretrained(tmp_path / "model", output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def stock_folder(name: str, folder: Path) -> Any:
    """A folder as the stock class writes it, from a config without any setting of latents."""
    hf = build(name)
    raw = hf.config.to_dict()
    plain: Any = type(hf).__mro__[2]
    fields = {
        key: value for key, value in raw.items() if key in plain.config_class.__dataclass_fields__ and "lvr" not in key
    }
    stock = plain(plain.config_class(**fields)).eval()
    stock.load_state_dict(hf.state_dict())
    stock.save_pretrained(folder)
    PARTS.save_pretrained(folder)
    return stock


@pytest.mark.parametrize("name", ["grouped queries", "Qwen3-VL"])
def test_a_folder_of_the_stock_class_loads_generates_and_caches_without_latents(name: str, tmp_path: Path):
    stock = stock_folder(name, tmp_path)
    assert not any("latent" in key or "lvr" in key for key in json.loads((tmp_path / "config.json").read_text()))
    model = trace.load(tmp_path)
    model.max_new_tokens = 4
    assert not model.processor.start and model.hf.config.latent_entry == "none"
    run = model.generate(ITEMS[:1])
    assert run.without_latents == (ITEMS[0].id,) and run.latents.shape == (1, 0, 64)
    prompt = model.processor(ITEMS[:1])
    written = stock.generate(
        input_ids=prompt.input_ids, attention_mask=torch.ones_like(prompt.input_ids), pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw, mm_token_type_ids=(prompt.input_ids == 5).int(), max_new_tokens=4,
        do_sample=False, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    assert run.unrolled.input_ids.tolist() == written.tolist()
    _, cache = model.run_with_cache(ITEMS)
    assert "hook_latent" not in cache and set(cache) == set(site_names(model.hf.n_layers)) - {"hook_latent"}


def test_a_folder_that_calls_itself_latent_and_lacks_its_ids_is_still_refused(tmp_path: Path):
    stock_folder("grouped queries", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LVRForConditionalGeneration"]}))
    with pytest.raises(CheckpointError, match="config lacks lvr_start_id"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["llava", None])
def test_another_architecture_is_answered_with_those_that_are_served(kind: str | None, tmp_path: Path):
    stock_folder("grouped queries", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(CheckpointError, match=r"model_type = '.*'\n  needed: one of qwen2_5_vl, qwen3_vl"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", [{"use_sliding_window": True, "max_window_layers": 1}, {"layer_types": ["full_attention", "sliding_attention"]}])  # fmt: skip
def test_sliding_windows_are_refused(text: dict[str, Any]):
    base = qwen25().to_dict()
    base["text_config"].pop("layer_types")
    with pytest.raises(CheckpointError, match="needed: full attention"):
        LVRForConditionalGeneration(LVRConfig(**base | {"text_config": base["text_config"] | text}))


REAL: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "3B": (
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2},
        {"attn.hook_q": 2048, "attn.hook_k": 256, "attn.hook_v": 256, "hook_attn_out": 2048, "hook_mlp_out": 2048},
    ),
    "7B": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        {"attn.hook_q": 3584, "attn.hook_k": 512, "attn.hook_v": 512, "hook_attn_out": 3584, "hook_mlp_out": 3584},
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", REAL)
def test_a_real_size_has_its_names_and_widths_without_weights(size: str):
    text, widths = REAL[size]
    own = text | {"vocab_size": 151936, "rope_parameters": rope(16, 24, 24)}
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
    with torch.device("meta"):
        hf = LVRForConditionalGeneration(qwen25(own, tower, lvr_head="simple")).eval()
    model = trace.load((hf, PARTS))
    layers = text["num_hidden_layers"]
    names = site_names(layers, head=True)
    assert (
        {name.split(".", 2)[2] for name in names if name.startswith("blocks.")} < set(PER_LAYER)
        and model.check().sites == names
        and not list(modules(hf, names))
    )
    for layer in (0, layers - 1):
        for inner, width in widths.items():
            module: Any = hf.get_submodule(site(f"blocks.{layer}.{inner}", layers).path)
            states = torch.empty(2, 5, own["hidden_size"], device="meta")
            assert module(states).shape == (2, 5, width)
    assert all(value.is_meta for value in hf.parameters())


def test_a_processor_of_the_stock_kind_is_read(tmp_path: Path):
    """transformers 5 may keep the image processor's settings inside processor_config.json."""
    PARTS.save_pretrained(tmp_path)
    inner = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": inner, "processor_class": "Qwen2_5_VLProcessor"})
    )
    again = LVRProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(ITEMS).pixel_values, PARTS(ITEMS).pixel_values)


def test_an_edit_of_images_reaches_past_the_first_layers():
    """On Qwen3-VL the prompt's image positions can be edited after the last addition."""
    model = trace.load((build("Qwen3-VL"), PARTS), check=False)
    model.max_new_tokens = 1
    clean = model.generate(ITEMS).latents
    edit = Edit(op=Zero(), positions=image, site="blocks.2.hook_resid_pre")
    view = model.edited(edit)
    _, cache = view.run_with_cache(ITEMS, "blocks.2.hook_resid_pre", positions=image)
    assert not bool(cache.flat("blocks.2.hook_resid_pre").any())
    assert not torch.equal(view.generate(ITEMS).latents, clean)
    held = model.edited(Edit(op=Zero(), positions=latent, site="blocks.2.hook_resid_pre", mode="held"))
    assert torch.equal(held.generate(ITEMS).latents, clean)
