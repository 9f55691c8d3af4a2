"""The one table of hook names: module, end, view and axes of each, in forward order; knows no model's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

TEXT, LAYERS, VISION = "model.language_model", "model.language_model.layers", "model.visual"
LATENT = "hook_latent"
"""The vector that is fed back, before the first layer; its columns are latents, ``[batch, step, d_model]``."""
HEAD = "hook_latent_head"
"""The output of the LVR head at every position, on models that have one: at p - 1 it is what is fed back at p."""
UNEMBED_IN = "unembed.hook_in"
"""The state after the final norm, its weight included: what is unembedded, and what is fed back or enters the head."""
LOGITS = "unembed.hook_out"
"""The logits."""


@dataclass(frozen=True)
class Row:
    """A line of the table; the fields are those of `Site`. ``{layer}`` and ``{last}`` stand in paths for numbers."""

    path: str
    end: str
    view: str = "whole"
    axes: str = "batch pos d_model"
    eager: bool = False
    asked: bool = False


HEADS, KV_HEADS = "batch pos head d_head", "batch pos kv_head d_head"
SQUARE, MLP, SCALE = "batch head query key", "batch pos d_mlp", "batch pos 1"
PATCHES, TOKENS = "patch d_vision", "image_token d_model"

PER_LAYER: Mapping[str, Row] = MappingProxyType({
    "hook_resid_pre": Row("", "input"),
    "hook_attn_in": Row(".input_layernorm", "input", asked=True),
    "ln1.hook_scale": Row(".input_layernorm", "output", "scale", SCALE),
    "ln1.hook_normalized": Row(".input_layernorm", "output", "normalized"),
    "attn.q.hook_in": Row(".self_attn.q_proj", "input", asked=True),
    "attn.hook_q": Row(".self_attn.q_proj", "output", "heads", HEADS),
    "attn.k.hook_in": Row(".self_attn.k_proj", "input", asked=True),
    "attn.hook_k": Row(".self_attn.k_proj", "output", "heads", KV_HEADS),
    "attn.v.hook_in": Row(".self_attn.v_proj", "input", asked=True),
    "attn.hook_v": Row(".self_attn.v_proj", "output", "heads", KV_HEADS),
    "attn.hook_rot_q": Row(".self_attn.hook_rot_q", "output", "whole", HEADS, eager=True, asked=True),
    "attn.hook_rot_k": Row(".self_attn.hook_rot_k", "output", "whole", KV_HEADS, eager=True, asked=True),
    "attn.hook_attn_scores": Row(".self_attn.hook_attn_scores", "output", "queries", SQUARE, eager=True, asked=True),
    "attn.hook_pattern": Row(".self_attn.hook_pattern", "output", "queries", SQUARE, eager=True, asked=True),
    "attn.hook_z": Row(".self_attn.o_proj", "input", "heads", HEADS),
    "attn.hook_result": Row(".self_attn.o_proj", "output", "result", "batch pos head d_model", asked=True),
    "hook_attn_out": Row(".self_attn.o_proj", "output"),
    "hook_resid_mid": Row(".post_attention_layernorm", "shared"),
    "hook_mlp_in": Row(".post_attention_layernorm", "input", asked=True),
    "ln2.hook_scale": Row(".post_attention_layernorm", "output", "scale", SCALE),
    "ln2.hook_normalized": Row(".post_attention_layernorm", "output", "normalized"),
    "mlp.hook_pre": Row(".mlp.gate_proj", "output", "whole", MLP),
    "mlp.hook_pre_linear": Row(".mlp.up_proj", "output", "whole", MLP),
    "mlp.hook_post": Row(".mlp.down_proj", "input", "whole", MLP),
    "hook_mlp_out": Row(".mlp", "output"),
    "hook_resid_post": Row("", "output"),
})  # fmt: skip
"""Name inside a block -> its row, in the order in which a forward reaches them.

Queries, keys and values are as projected, before the rotary embedding; ``rot_q`` and ``rot_k`` after it, the latter
with the forward's own columns only. ``hook_attn_in`` and ``hook_mlp_in`` are the residual stream as that branch alone
reads it (without TransformerLens' extra head axis). ``hook_normalized`` is the state over its scale, before the norm's
weight."""

FIRST: Mapping[str, Row] = MappingProxyType({
    LATENT: Row(LATENT, "output", "whole", "batch step d_model"),
    "hook_embed": Row("hook_embed", "output"),
})  # fmt: skip
"""Before the blocks. ``hook_embed`` is what the first block reads: tokens, image features and latents together."""

LAST: Mapping[str, Row] = MappingProxyType({
    "ln_final.hook_scale": Row(f"{TEXT}.norm", "output", "scale", SCALE),
    "ln_final.hook_normalized": Row(f"{TEXT}.norm", "output", "normalized"),
    UNEMBED_IN: Row(f"{TEXT}.norm", "output"),
    LOGITS: Row("lm_head", "output", "whole", "batch pos d_vocab", asked=True),
    HEAD: Row(HEAD, "output"),
})  # fmt: skip
"""After the blocks."""

VISION_FIRST: Mapping[str, Row] = MappingProxyType({
    "hook_vision_embed": Row(f"{VISION}.patch_embed", "output", "whole", PATCHES, asked=True),
})  # fmt: skip
VISION_LAYER: Mapping[str, Row] = MappingProxyType({
    "hook_resid_pre": Row("", "input", "patches", PATCHES, asked=True),
    "hook_resid_post": Row("", "output", "patches", PATCHES, asked=True),
})  # fmt: skip
VISION_LAST: Mapping[str, Row] = MappingProxyType({
    "hook_vision_out": Row(VISION + ".blocks.{last}", "output", "patches", PATCHES, asked=True),
    "hook_vision_proj_in": Row(f"{VISION}.merger", "input", "patches", PATCHES, asked=True),
    "hook_vision_proj_out": Row(f"{VISION}.merger", "output", "patches", TOKENS, asked=True),
})  # fmt: skip
"""The vision tower, before, in and after its blocks. Rows are in the order of the processor's patches, image after
image (the tower itself works in the order of its windows): patches 4 t to 4 t + 3 are merged into image token t."""

ALIASES: Mapping[str, str] = MappingProxyType({
    "hook_in": "hook_resid_pre",
    "ln2.hook_in": "hook_resid_mid",
    "hook_out": "hook_resid_post",
    "attn.hook_attn_in": "hook_attn_in",
    "attn.q.hook_out": "attn.hook_q",
    "attn.k.hook_out": "attn.hook_k",
    "attn.v.hook_out": "attn.hook_v",
    "attn.o.hook_in": "attn.hook_z",
    "attn.o.hook_out": "hook_attn_out",
    "attn.hook_out": "hook_attn_out",
    "ln1.hook_in": "hook_attn_in",
    "mlp.gate.hook_out": "mlp.hook_pre",
    "mlp.in.hook_out": "mlp.hook_pre_linear",
    "mlp.out.hook_in": "mlp.hook_post",
    "mlp.out.hook_out": "hook_mlp_out",
    "mlp.hook_out": "hook_mlp_out",
})  # fmt: skip
"""TransformerLens 4 names inside a block -> the names above, which are those of TransformerLens 3."""
WHOLE_ALIASES: Mapping[str, str] = MappingProxyType({"embed.hook_out": "hook_embed"})

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"kv": ("attn.hook_k", "attn.hook_v"), "k": ("attn.hook_k",), "v": ("attn.hook_v",)}
)
"""Short names for the same sites at every layer: ``"kv"`` is every layer's keys and values."""
