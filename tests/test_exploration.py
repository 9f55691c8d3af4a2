"""What the widget shows is what the model computes: against hand-run forwards, and on models of known mechanism."""

import math

import pytest
import torch

import prismlens as pl
from prismlens.errors import ItemError, SettingError
from prismlens.exploration import KNOBS, PATCHING, PROBE, STATE, Exploration
from prismlens.positions import latent


@pytest.fixture(scope="module")
def looks() -> dict[str, Exploration]:
    items = pl.load_items("shapes", n=12)
    return {name: Exploration(pl.load(f"tiny/{name}"), items) for name in ("bottleneck", "bypass", "lvr")}


def test_zeroing_a_state_has_the_effect_that_the_construction_dictates(looks):
    # What follows the block reads slots at layer 0 alone, so a state after it acts through the next latents only.
    assert torch.equal(looks["bottleneck"].effect(0, mode="held"), torch.zeros(4, 4))
    free = looks["bottleneck"].effect(0, mode="free")
    assert free.abs().max() > 0.05 and torch.equal(free[:, -1], torch.zeros(4))
    for mode in ("held", "free"):
        assert torch.equal(looks["bypass"].effect(0, mode=mode), torch.zeros(4, 4))


def test_the_lens_is_the_final_norm_and_the_unembedding(looks):
    look = looks["lvr"]
    model, own = look.model, look.items[0]
    cache = model.run_with_cache([own], "resid_post", positions=latent)[1]
    encode = model.processor.tokenizer.encode
    words = [encode(f" {text}", add_special_tokens=False)[0] for text in own.options]
    state = cache["resid_post", 2][0, 1].double()
    norm = model.hf.model.language_model.norm
    scaled = state / (state.pow(2).mean() + norm.variance_epsilon).sqrt() * norm.weight.double()
    shares = (scaled @ model.hf.lm_head.weight[words].double().T).softmax(-1)
    right = own.letters.index(own.answer)
    assert look.answer_lens(0)[2, 1].item() == pytest.approx(shares[right].item(), abs=1e-5)


def test_a_cell_compares_the_state_with_the_image_tokens_of_its_own_layer(looks):
    look = looks["lvr"]
    cell = look.cell(0, 1, 2)
    cache = look.model.run_with_cache([look.items[0]], "resid_post", positions=pl.image | latent[2])[1]
    states = cache["resid_post", 1][0]
    wanted = torch.cosine_similarity(states[-1][None], states[:-1], dim=-1)
    assert torch.allclose(cell.patches.flatten(), wanted, atol=1e-5)
    assert [share for _, share in cell.tokens] == sorted((share for _, share in cell.tokens), reverse=True)


def test_shares_are_those_of_the_run(looks):
    look = looks["lvr"]
    own = look.shares(3)
    assert sum(own.values()) == pytest.approx(1, abs=1e-6)
    chosen = max(own, key=lambda label: own[label])
    assert chosen[0] == look.clean.choice[3]


def test_pieces_are_the_whole_sequence_with_the_image_once(looks):
    look = looks["lvr"]
    pieces = look.pieces(0)
    roles = [role for _, role in pieces]
    assert roles.count("image") == 1 and roles.count("latent") == 4
    unrolled = look.clean.unrolled
    n_image = int((unrolled.segments[0] == 2).sum())
    assert len(pieces) == int(unrolled.valid[0].sum()) - n_image + 1
    assert [text for text, role in pieces if role == "latent"] == ["z1", "z2", "z3", "z4"]


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_makes_an_edit_that_runs(looks, name):
    look = looks["bottleneck"]
    edit = pl.Edit(KNOBS[name][0](1.0))
    assert sum(look.shares(0, look.edited(0, [edit])).values()) == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_shown_says_why(looks):
    with pytest.raises(SettingError, match="no latents"):
        Exploration(pl.load("tiny/sft"), looks["lvr"].items)
    with pytest.raises(SettingError, match="a map called"):
        looks["lvr"].map(0, "other", "free")
    open_question = pl.Item(image=looks["lvr"].items[0].image, question="What is this?", id="open")
    with pytest.raises(ItemError, match="no answer to compare"):
        Exploration(looks["lvr"].model, [open_question]).shares(0)
    assert STATE.format(layer=2) == "blocks.2.hook_resid_post"


def test_a_patched_state_acts_where_the_construction_says(looks):
    for name in ("bypass", "bottleneck"):
        held, signed = looks[name].map(0, PATCHING, "held")
        assert signed and torch.equal(held, torch.zeros(4, 4))
    # Another item's state reaches the answer through the latents after it, so the last latent's reaches nothing.
    free = looks["bottleneck"].map(0, PATCHING, "free")[0]
    assert bool((free[:, 0] != 0).any()) and torch.equal(free[:, -1], torch.zeros(4))


def test_the_probe_map_is_the_item_s_held_out_probability():
    items = pl.load_items("shapes", n=60)
    look = Exploration(pl.load("tiny/bottleneck"), items)
    values, signed = look.map(7, PROBE, "free")
    assert not signed and values.shape == (4, 4) and bool((values > 0).all()) and bool((values < 1).all())
    rows = pl.decodability(look.model, items, roles=[latent[1]], layers=[2], n_permutations=0, n_controls=0).rows
    own = rows[(rows.item == items[7].id) & (rows.depth == 3)]
    assert values[2, 1].item() == pytest.approx(math.exp(own.logprob.iloc[0]), abs=1e-5)


def test_a_cell_s_attention_is_what_the_pattern_gives_the_image(looks):
    look = looks["lvr"]
    cell = look.cell(0, 1, 2)
    name = "blocks.1.attn.hook_pattern"
    cache = look.model.run_with_cache([look.items[0]], name, positions=latent[2])[1]
    whole = cache.flat(name)[0].mean(0)
    assert cell.attention is not None and cell.attention.shape == cell.patches.shape
    assert cell.attention.sum().item() == pytest.approx(whole[pl.image.mask(cache.unrolled)[0]].sum().item(), abs=1e-6)
    assert whole.sum().item() == pytest.approx(1, abs=1e-5) and 0 < cell.attention.sum() < 1
