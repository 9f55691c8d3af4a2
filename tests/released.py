"""Tiny random models of every kind that the released code writes, and what tests do to their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.training.architecture import initialise, tiny_config, tiny_processor

Pair = tuple[LVRForConditionalGeneration, LVRProcessor]
STAGE_IDS = {
    "ctx_start_id": 11, "ctx_end_id": 12, "free_start_id": 13, "free_id": 14, "free_end_id": 15, "tgt_start_id": 16,
    "tgt_end_id": 17,
}  # fmt: skip
SIMPLE = {
    "lvr_head.ln_q.weight": (64,), "lvr_head.ln_q.bias": (64,), "lvr_head.mlp.0.weight": (64, 64),
    "lvr_head.mlp.0.bias": (64,), "lvr_head.mlp.2.weight": (64, 64), "lvr_head.mlp.2.bias": (64,),
}  # fmt: skip
GATED = {
    "lvr_head.gate_proj.weight": (192, 64), "lvr_head.gate_proj.bias": (192,), "lvr_head.up_proj.weight": (192, 64),
    "lvr_head.up_proj.bias": (192,), "lvr_head.down_proj.weight": (64, 192), "lvr_head.down_proj.bias": (64,),
}  # fmt: skip
END_VECTOR = {"lvr_latent_end_emb": (64,)}
OUTPUT = {"lm_head.weight": (409, 64)}
CASES: dict[str, tuple[dict[str, Any], torch.dtype, dict[str, tuple[int, ...]]]] = {
    "tied": ({}, torch.float32, {}),
    "untied": ({"tie_word_embeddings": False}, torch.bfloat16, OUTPUT),
    "simple head": ({"lvr_head": "simple"}, torch.float16, SIMPLE),
    "gated head and end vector": ({"lvr_head": "gated", "latent_end_token": True}, torch.bfloat16, GATED | END_VECTOR),
    "all of it": (
        {"lvr_head": "simple", "latent_end_token": True, "tie_word_embeddings": False, **STAGE_IDS}, torch.float32,
        SIMPLE | END_VECTOR | OUTPUT,
    ),
}  # fmt: skip
"""Settings, dtype, and the weights beyond Qwen2.5-VL's own that the released code names, written out by hand."""


def build(dtype: torch.dtype = torch.float32, **latent: Any) -> Pair:
    """A random model of 64 dimensions and two layers in which every weight is drawn."""
    tied = latent.pop("tie_word_embeddings", True)
    parts = tiny_processor(start=True)
    start = "<|ctx_start|>" if "ctx_start_id" in latent else True
    processor = LVRProcessor(parts.image_processor, parts.tokenizer, start=start)
    config = tiny_config(processor.tokenizer, width=64, layers=2, **({"latent_steps": 3} | latent))
    config.tie_word_embeddings = tied
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith("lvr_") or (name.startswith("lm_head") and not tied) or name.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
    for value in model.parameters():  # not model.to(dtype), which also rounds the rotary frequencies: loading does not
        value.data = value.data.to(dtype)
    return model, processor


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, whatever its shards."""
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = "config.json") -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
    )


def settings_of(model: LVRForConditionalGeneration) -> dict[str, Any]:
    """Every field of a config but the label of the class and notes of the loader."""
    fields = json.loads(model.config.to_json_string(use_diff=False))
    fields["lvr_head"], fields["lvr_head_type"] = model.config.head, None
    for part in (fields, fields["text_config"], fields["vision_config"]):
        for noise in ("architectures", "transformers_version", "_name_or_path", "dtype", "tie_word_embeddings"):
            part.pop(noise, None)
    return fields | {"tied": model.config.tie_word_embeddings}
