"""What each hook name stands for, recomputed in float64 from the one before it; and the hooked attention itself."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prismlens.data.shapes import shapes
from prismlens.models.hooked_attention import HOOKED, attention_hooked
from prismlens.sites import site
from prismlens.trace.forward import Read, traced_step
from tests.plain_hooks import SHAPES, Twins, every_name, plain_run, relative, shaped_twins, whole

ITEMS = shapes(2, seed=5)
CLOSE = 3e-6


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda n: "-".join(map(str, SHAPES[n].values())))
def pair(request) -> Twins:
    return shaped_twins(request.param, steps=2)


@pytest.fixture(scope="module")
@torch.no_grad()
def seen(pair: Twins) -> dict[str, Tensor]:
    """Every value of a replay of one item, in float64, ``[pos, ...]``."""
    run, _ = plain_run(pair, ITEMS[:1])
    names = every_name(pair.plain.n_layers, head=pair.plain.has_head)
    reads = [Read(site(name, pair.plain.n_layers), run.valid) for name in names]
    got = traced_step(pair.traced.engine.wrapper, whole(pair, run), [], reads)
    return {**{name: value.double() for name, value in got.values.items()}, "ids": run.position_ids[:, 0]}


def rotated(vectors: Tensor, ids: Tensor, section: list[int], theta: float) -> Tensor:
    """M-RoPE by hand: pair j of a head turns by theta^(-2j/d) times the position on the axis that owns pair j."""
    pos, _, size = vectors.shape
    axis = [number % 3 for number, count in enumerate(section) for _ in range(count)]
    out = torch.empty_like(vectors)
    for j in range(size // 2):
        angle = ids[axis[j]].double() * theta ** (-2 * j / size)
        first, second = vectors[..., j], vectors[..., j + size // 2]
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        out[..., j], out[..., j + size // 2] = first * cos - second * sin, second * cos + first * sin
    assert pos == ids.shape[1]
    return out


def test_every_value_of_a_block_follows_from_the_one_before(pair, seen):
    text, layers = pair.plain.config.text, pair.plain.model.language_model.layers
    groups, section = text.num_attention_heads // text.num_key_value_heads, text.rope_parameters["mrope_section"]
    for number, layer in enumerate(layers):
        weights = {name: value.double() for name, value in layer.state_dict().items()}
        at = {name.split(".", 2)[2]: value for name, value in seen.items() if name.startswith(f"blocks.{number}.")}

        def check(name: str, expected: Tensor, at=at) -> None:
            assert at[name].shape == expected.shape, name
            assert relative(at[name], expected) < CLOSE, name

        def norm(which: str, state: Tensor, at=at, check=check, weights=weights) -> Tensor:
            check(f"{which}.hook_scale", (state.square().mean(-1, keepdim=True) + text.rms_norm_eps).sqrt())
            check(f"{which}.hook_normalized", state / at[f"{which}.hook_scale"])
            return at[f"{which}.hook_normalized"] * weights[NORMS[which]]

        check("hook_attn_in", at["hook_resid_pre"])
        entering = norm("ln1", at["hook_resid_pre"])
        for part in "qkv":
            check(f"attn.{part}.hook_in", entering)
            matrix, bias = weights[f"self_attn.{part}_proj.weight"], weights[f"self_attn.{part}_proj.bias"]
            check(f"attn.hook_{part}", (entering @ matrix.T + bias).unflatten(-1, (-1, d_head(text))))
        for part in "qk":
            check(f"attn.hook_rot_{part}", rotated(at[f"attn.hook_{part}"], seen["ids"], section, 10000.0))
        keys, values = (at[name].repeat_interleave(groups, 1) for name in ("attn.hook_rot_k", "attn.hook_v"))
        scores = torch.einsum("qhd,khd->qhk", at["attn.hook_rot_q"], keys) / d_head(text) ** 0.5
        hidden = torch.ones(len(scores), len(scores), dtype=torch.bool).triu(1)[:, None].expand_as(scores)
        assert bool((at["attn.hook_attn_scores"][hidden] < -1e38).all())
        assert relative(at["attn.hook_attn_scores"][~hidden], scores[~hidden]) < CLOSE
        check("attn.hook_pattern", scores.masked_fill(hidden, -torch.inf).softmax(-1))
        check("attn.hook_z", torch.einsum("qhk,khd->qhd", at["attn.hook_pattern"], values))
        output = weights["self_attn.o_proj.weight"].unflatten(1, (text.num_attention_heads, -1))
        check("attn.hook_result", torch.einsum("phd,mhd->phm", at["attn.hook_z"], output))
        check("hook_attn_out", at["attn.hook_result"].sum(1))
        check("hook_resid_mid", at["hook_resid_pre"] + at["hook_attn_out"])
        check("hook_mlp_in", at["hook_resid_mid"])
        second = norm("ln2", at["hook_resid_mid"])
        check("mlp.hook_pre", second @ weights["mlp.gate_proj.weight"].T)
        check("mlp.hook_pre_linear", second @ weights["mlp.up_proj.weight"].T)
        check("mlp.hook_post", F.silu(at["mlp.hook_pre"]) * at["mlp.hook_pre_linear"])
        check("hook_mlp_out", at["mlp.hook_post"] @ weights["mlp.down_proj.weight"].T)
        check("hook_resid_post", at["hook_resid_mid"] + at["hook_mlp_out"])


NORMS = {"ln1": "input_layernorm.weight", "ln2": "post_attention_layernorm.weight"}


def d_head(text) -> int:
    return text.hidden_size // text.num_attention_heads


def test_what_surrounds_the_blocks_follows_too(pair, seen):
    plain, last = pair.plain, seen[f"blocks.{pair.plain.n_layers - 1}.hook_resid_post"]
    assert torch.equal(seen["hook_embed"], seen["blocks.0.hook_resid_pre"])
    assert torch.equal(seen["hook_latent"], seen["hook_embed"][-len(seen["hook_latent"]) - 1 : -1])
    scale = (last.square().mean(-1, keepdim=True) + plain.config.text.rms_norm_eps).sqrt()
    assert relative(seen["ln_final.hook_scale"], scale) < CLOSE
    assert relative(seen["ln_final.hook_normalized"], last / scale) < CLOSE
    weight = plain.model.language_model.norm.weight.double()
    assert relative(seen["unembed.hook_in"], last / scale * weight) < CLOSE
    assert relative(seen["unembed.hook_out"], seen["unembed.hook_in"] @ plain.lm_head.weight.double().T) < CLOSE
    if plain.has_head:
        with torch.no_grad():
            expected = deepcopy(plain.lvr_head).double()(seen["unembed.hook_in"][None])[0]
        assert relative(seen["hook_latent_head"], expected) < CLOSE


@torch.no_grad()
def test_hooked_attention_is_eager_attention_bit_for_bit_and_is_taken_back(pair):
    language = pair.plain.model.language_model
    assert language.config._attn_implementation == language.layers[0].self_attn.config._attn_implementation == "sdpa"
    spread, _ = plain_run(pair, ITEMS)
    with attention_hooked(language):
        assert language.layers[0].self_attn.config._attn_implementation == HOOKED
        hooked, record = plain_run(pair, ITEMS)
    # Of the language model alone: the vision tower's own attention stays what it was in all runs.
    pair.plain.config._attn_implementation = {"": "eager", "text_config": "eager"}
    eager, again = plain_run(pair, ITEMS)
    with attention_hooked(language):
        additive, _ = plain_run(pair, ITEMS)
    pair.plain.config._attn_implementation = "sdpa"
    assert torch.equal(hooked.latents, eager.latents) and torch.equal(additive.latents, eager.latents)
    assert all(torch.equal(a, b) for a, b in zip(record.logits, again.logits, strict=True))
    assert relative(spread.latents, eager.latents) < 1e-5
    with pytest.raises(ZeroDivisionError), attention_hooked(language):
        raise ZeroDivisionError
    assert language.config._attn_implementation == "sdpa"


def test_hook_points_leave_the_state_dict_as_it_is(pair):
    assert not [name for name in pair.plain.state_dict() if "hook" in name]
