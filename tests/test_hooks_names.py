"""Names of both TransformerLens versions, and axes and sizes at the scale of real models, without any weight."""

import math

import pytest
import torch
from torch import nn

from prismlens.errors import SiteError
from prismlens.models.config import LVRConfig
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.sites import axes, canonical, closest, get_act_name, site, site_names
from prismlens.trace.cfg import ModelConfig
from prismlens.trace.names import matching_names

PAIRS = [
    ("hook_embed", "embed.hook_out"),
    ("blocks.4.hook_resid_pre", "blocks.4.hook_in"),
    ("blocks.4.hook_resid_mid", "blocks.4.ln2.hook_in"),
    ("blocks.4.hook_resid_post", "blocks.4.hook_out"),
    ("blocks.4.hook_attn_out", "blocks.4.attn.hook_out"),
    ("blocks.4.hook_attn_out", "blocks.4.attn.o.hook_out"),
    ("blocks.4.attn.hook_q", "blocks.4.attn.q.hook_out"),
    ("blocks.4.attn.hook_k", "blocks.4.attn.k.hook_out"),
    ("blocks.4.attn.hook_v", "blocks.4.attn.v.hook_out"),
    ("blocks.4.attn.hook_z", "blocks.4.attn.o.hook_in"),
    ("blocks.4.hook_mlp_out", "blocks.4.mlp.hook_out"),
    ("blocks.4.hook_mlp_out", "blocks.4.mlp.out.hook_out"),
    ("blocks.4.hook_attn_in", "blocks.4.ln1.hook_in"),
    ("blocks.4.mlp.hook_pre", "blocks.4.mlp.gate.hook_out"),
    ("blocks.4.mlp.hook_pre_linear", "blocks.4.mlp.in.hook_out"),
    ("blocks.4.mlp.hook_post", "blocks.4.mlp.out.hook_in"),
]
PROMISED = [
    "hook_embed", "ln_final.hook_normalized", "ln_final.hook_scale", "unembed.hook_in", "unembed.hook_out",
    "hook_latent", "hook_latent_head", "hook_vision_embed", "vision.blocks.0.hook_resid_pre",
    "vision.blocks.0.hook_resid_post", "hook_vision_out", "hook_vision_proj_in", "hook_vision_proj_out",
    *(f"blocks.0.hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out")),
    *(f"blocks.0.{norm}.hook_{name}" for norm in ("ln1", "ln2") for name in ("normalized", "scale")),
    *(f"blocks.0.attn.hook_{name}" for name in ("q", "k", "v", "z", "attn_scores", "pattern", "result", "rot_q", "rot_k")),
    *(f"blocks.0.attn.{part}.hook_in" for part in "qkv"),
    *(f"blocks.0.mlp.hook_{name}" for name in ("pre", "pre_linear", "post")),
]  # fmt: skip


def test_every_promised_name_is_there_and_no_other():
    assert sorted(site_names(1, head=True, n_vision_layers=1, every=True)) == sorted(PROMISED)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_both_versions_names_are_one_site(old: str, new: str):
    assert site(new, 5) == site(old, 5) and canonical(new) == old and axes(new) == axes(old)
    assert matching_names([new], 5) == [old]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("normalized", 3, "ln2"), "blocks.3.ln2.hook_normalized"),
        (("scale", 3, "ln1"), "blocks.3.ln1.hook_scale"),
        (("normalized",), "ln_final.hook_normalized"),
        (("k", 6, "attn"), "blocks.6.attn.hook_k"),
        (("pre", 2, "mlp"), "blocks.2.mlp.hook_pre"),
        (("resid_pre", 2, "blocks"), "blocks.2.hook_resid_pre"),
        (("pre_linear", 2), "blocks.2.mlp.hook_pre_linear"),
        (("rot_k", 0), "blocks.0.attn.hook_rot_k"),
        (("blocks.1.attn.hook_z",), "blocks.1.attn.hook_z"),
        (("pattern12",), "blocks.12.attn.hook_pattern"),
    ],
)
def test_short_names(arguments: tuple, name: str):
    assert get_act_name(*arguments) == name


def test_an_ambiguous_or_unknown_short_name_is_refused():
    for arguments in (("scale", 3), ("nothing", 3), ("k", 3, "mlp")):
        with pytest.raises(SiteError, match="no activation is called"):
            get_act_name(*arguments)
    assert "blocks.0.attn.hook_pattern" in closest("blocks.0.attn.hook_patterns", 1)


def test_a_stop_leaves_out_what_comes_after_it_and_refuses_it_by_name():
    names = matching_names(None, 3, stop_at_layer=1)
    assert (
        names[-1] == "blocks.0.hook_resid_post" and "hook_embed" in names and len(names) < len(matching_names(None, 3))
    )
    assert matching_names("resid_post", 3, stop_at_layer=2) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for late in ("blocks.2.hook_resid_pre", "unembed.hook_in"):
        with pytest.raises(SiteError, match=f"asks for '{late}' and stop_at_layer is 2"):
            matching_names([late], 3, stop_at_layer=2)


REAL = {
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
}  # fmt: skip


@pytest.mark.parametrize("size", REAL)
def test_at_real_sizes_every_name_has_a_module_of_the_promised_width(size: str):
    text, vision = REAL[size], {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    config = LVRConfig(
        text_config=text, vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=size == "3B", latent_entry="none", lvr_head="simple",
    )  # fmt: skip
    with torch.device("meta"):
        model = LVRForConditionalGeneration(config)
    cfg = ModelConfig.of(config)
    assert (cfg.n_layers, cfg.d_head, cfg.n_vision_layers) == (text["num_hidden_layers"], 128, 32)
    assert cfg.tied_embeddings == (size == "3B") and cfg.latent_head == "simple"
    sizes = {
        "head": cfg.n_heads, "kv_head": cfg.n_key_value_heads, "d_head": cfg.d_head, "d_model": cfg.d_model,
        "d_mlp": cfg.d_mlp, "d_vocab": cfg.d_vocab, "d_vision": cfg.d_vision, "1": 1, "query": 1, "key": 1,
    }  # fmt: skip
    checked = 0
    for name in site_names(cfg.n_layers, head=True, n_vision_layers=cfg.n_vision_layers, every=True):
        place = site(name, cfg.n_layers, n_vision_layers=cfg.n_vision_layers)
        module = model.get_submodule(place.path)
        if isinstance(module, nn.Linear) and place.view != "result":
            width = module.out_features if place.end == "output" else module.in_features
            assert width == math.prod(sizes[axis] for axis in place.axes.split()[2:]), name
            checked += 1
    assert checked == cfg.n_layers * (6 + 1 + 1 + 3) + 1
