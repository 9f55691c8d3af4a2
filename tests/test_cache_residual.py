"""Parts of the residual stream add up to it, and their shares to the logits, at every layer and kind of position."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import prismlens as pl
from prismlens.cache import ActivationCache
from prismlens.data.shapes import shapes
from prismlens.errors import RoleError, SettingError, SiteError
from prismlens.interventions import Edit, Scale, Zero
from prismlens.positions import answer, image, latent, question
from tests.cache_cases import HEADS, LAYERS, STEPS, WIDTH, model_of, with_inside

ITEMS = shapes(5, seed=3)
REGULAR = latent | answer[:2]
ROLES = {"latents and answer": REGULAR, "image": image, "question": question, "every position": None}
ENDS = [0, 1, 2, LAYERS]


@pytest.fixture(scope="module", params=[False, True], ids=["no biases", "biases"])
def model(request):
    return model_of(biased=request.param)


@pytest.fixture(scope="module", params=ROLES)
def cache(request, model) -> ActivationCache:
    """Padded on the left: the questions differ in length."""
    return with_inside(model, lambda: model.run_with_cache(ITEMS, positions=ROLES[request.param])[1])


@pytest.fixture(scope="module")
def regular(model) -> ActivationCache:
    return with_inside(model, lambda: model.run_with_cache(ITEMS, positions=REGULAR)[1])


def stream(cache: ActivationCache, layer: int) -> Tensor:
    return cache[f"blocks.{layer}.hook_resid_pre" if layer < LAYERS else f"blocks.{LAYERS - 1}.hook_resid_post"]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def final_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as its paper has it, in the precision of `x` (transformers itself goes through float32)."""
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def test_the_cases_have_padding_latents_image_and_uneven_counts(model):
    _, cache = model.run_with_cache(ITEMS, "resid_pre")
    run = cache.unrolled
    assert len(set(run.valid.sum(1).tolist())) > 1 and not bool(run.valid[:, 0].all())
    assert bool((run.steps >= 0).any()) and cache["resid_pre", 0].ndim == 2
    assert model.run_with_cache(ITEMS, "resid_pre", positions=REGULAR)[1]["resid_pre", 0].ndim == 3


@pytest.mark.parametrize("layer", ENDS)
def test_the_decomposition_sums_to_the_stream(cache, layer: int):
    stack, labels = cache.decompose_resid(layer, return_labels=True)
    blocks = [f"{block}_{part}" for block in range(layer) for part in ("attn_out", "mlp_out")]
    assert labels == ["embed", *blocks]
    assert close(stack.sum(0), stream(cache, layer))
    assert torch.equal(stack[0], cache["resid_pre", 0])


@pytest.mark.parametrize("layer", ENDS)
@pytest.mark.parametrize("expand_neurons", [True, False])
def test_heads_neurons_embedding_and_biases_sum_to_the_stream(regular, model, layer: int, expand_neurons: bool):
    stack, labels = regular.get_full_resid_decomposition(layer, expand_neurons, return_labels=True)
    assert close(stack.sum(0), stream(regular, layer)) and len(labels) == len(stack) == len(set(labels))
    biased = model.hf.model.language_model.layers[0].self_attn.o_proj.bias is not None and layer > 0
    assert labels.count("bias") == biased and "remainder" not in labels
    per_block = HEADS + (3 * WIDTH if expand_neurons else 1)
    assert len(stack) == layer * per_block + 1 + biased


def test_heads_sum_to_the_attention_outputs_block_by_block(cache):
    for layer in range(1, LAYERS + 1):
        stack, labels = cache.stack_head_results(layer, return_labels=True)
        names = [f"L{block}H{head}" for block in range(layer) for head in range(HEADS)]
        assert labels in (names, [*names, "bias"])
        assert close(stack.sum(0), torch.stack([cache["attn_out", block] for block in range(layer)]).sum(0))
        if layer == 1:
            o_proj = cache.readout.blocks[0].W_O
            z = cache["blocks.0.attn.hook_z"][..., 1, :]
            assert close(stack[1], z @ o_proj[1])


def test_head_results_that_are_cached_themselves_are_taken(regular):
    stack = regular.stack_head_results(1)[:HEADS]
    result = stack.flatten(1, 2).transpose(0, 1)
    values = {k: v for k, v in regular.values_by_name.items() if "hook_z" not in k}
    other = replace(regular, values_by_name={**values, "blocks.0.attn.hook_result": result})
    assert torch.equal(other.stack_head_results(1)[:HEADS], stack)
    with pytest.raises(SiteError, match=r"names_filter=.*'attn.hook_z'"):
        other.stack_head_results(2)


@pytest.mark.parametrize("layer", [1, LAYERS])
def test_parts_past_the_norm_sum_to_what_reads_the_stream(cache, model, layer: int):
    norm = (
        model.hf.model.language_model.norm
        if layer == LAYERS
        else model.hf.model.language_model.layers[1].input_layernorm
    )
    expected = final_norm(stream(cache, layer), norm.weight.detach())
    # the scale in the cache is the model's own, which transformers computes in float32
    assert close(cache.decompose_resid(layer, apply_ln=True).sum(0), expected, 1e-6)
    assert close(cache.apply_ln_to_stack(cache.decompose_resid(layer), layer).sum(0), expected, 1e-6)
    # the same as one more component of a stack of any depth
    assert close(cache.apply_ln_to_stack(stream(cache, layer)[None, None], layer)[0, 0], expected, 1e-6)


def test_shares_sum_to_the_logits_of_the_model_itself(cache, model):
    positions = cache.positions
    logits = model.run_with_cache(ITEMS, "resid_post", positions=None)[0]
    every = model.run_with_cache(ITEMS, "resid_post", positions=None)[1].positions
    at = torch.full(cache.unrolled.shape, -1, dtype=torch.long)
    at[every.rows, every.columns] = torch.arange(len(every))
    mine = logits[at[positions.rows, positions.columns]]
    ids = mine.argmax(-1)
    stack = cache.decompose_resid()
    where = stack.shape[1:-1]
    top = mine.gather(1, ids[:, None])[:, 0].reshape(where)
    # transformers' norm is computed in float32 whatever the model
    assert close(cache.logit_attrs(stack, ids.reshape(where)).sum(0), top, 1e-6)
    for tokens in (7, torch.tensor(7)):
        assert close(cache.logit_attrs(stack, tokens).sum(0), mine[:, 7].reshape(where), 1e-6)
    per_item = torch.arange(5) + 20
    of_item = mine.gather(1, per_item[positions.rows][:, None])[:, 0].reshape(where)
    assert close(cache.logit_attrs(stack, per_item).sum(0), of_item, 1e-6)
    difference = cache.logit_attrs(stack, ids.reshape(where), incorrect_tokens=per_item)
    assert close(difference.sum(0), top - of_item, 1e-6)


def test_a_share_is_the_inner_product_with_the_unembedding(regular, model):
    stack = regular.decompose_resid()
    weight, unembed = model.hf.model.language_model.norm.weight.detach(), model.hf.lm_head.weight.detach()
    whole = stream(regular, LAYERS)
    scale = (whole[2, 1].pow(2).mean() + 1e-6).sqrt()
    expected = [(part[2, 1] / scale * weight) @ unembed[11] for part in stack]
    assert close(regular.logit_attrs(stack, 11)[:, 2, 1], torch.stack(expected), 1e-6)


def test_a_cached_scale_is_the_one_that_is_used(regular):
    scale = torch.full((len(regular.positions), 1), 2.0, dtype=torch.float64)
    other = replace(regular, values_by_name={**regular.values_by_name, "ln_final.hook_scale": scale})
    stack = regular.decompose_resid()
    assert close(other.apply_ln_to_stack(stack), stack / 2 * regular.readout.ln_final)


def test_the_accumulated_stream_is_the_stream_at_every_depth(regular):
    stack, labels = regular.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    for label, values in zip(labels, stack, strict=True):
        name = "resid_post" if label == "final_post" else f"resid_{label[2:]}"
        assert torch.equal(values, regular[name, 2 if label == "final_post" else int(label[0])])
    assert regular.accumulated_resid(1, return_labels=True)[1] == ["0_pre", "1_pre"]
    # each prefix of the decomposition is one entry
    parts = regular.decompose_resid().cumsum(0)
    assert close(stack, parts)


@pytest.mark.parametrize("pos_slice", [0, -1, slice(1, 4), (1, 4), [0, -1], torch.tensor([2])])
def test_a_pos_slice_commutes_with_everything(regular, pos_slice):
    index = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    whole, heads = regular.decompose_resid(), regular.stack_head_results(apply_ln=True)
    stack = regular.decompose_resid(pos_slice=pos_slice)
    assert torch.equal(stack, whole[:, :, index])
    assert torch.equal(regular.stack_head_results(pos_slice=pos_slice, apply_ln=True), heads[:, :, index])
    assert torch.equal(regular.accumulated_resid(pos_slice=pos_slice), regular.accumulated_resid()[:, :, index])
    ids = torch.arange(5)
    shares = regular.logit_attrs(whole, ids)[:, :, index]
    assert close(regular.logit_attrs(stack, ids, pos_slice=pos_slice), shares, 1e-14)
    kept = regular[..., pos_slice]["resid_post", 1]
    assert torch.equal(kept, regular["resid_post", 1][:, [index] if isinstance(index, int) else index])


def test_uneven_items_are_sliced_each_by_its_own_count(model):
    _, cache = model.run_with_cache(ITEMS, positions=question)
    rows = cache.positions.rows
    last = torch.stack([cache.flat("blocks.1.hook_resid_post")[rows == row][-1] for row in range(5)])
    assert torch.equal(cache[..., -1]["resid_post", 1], last[:, None])
    assert torch.equal(cache.accumulated_resid(2, pos_slice=-1)[2], last)
    assert torch.equal(
        cache[..., -1].positions.columns,
        model.run_with_cache(ITEMS, "resid_post", positions=question[-1])[1].positions.columns,
    )
    shortest = int(rows.bincount().min())
    with pytest.raises(RoleError, match=rf"asks for place {shortest} in row"):
        cache[..., shortest]
    with pytest.raises(RoleError, match="selects nothing"):
        cache[..., 100:]


def test_latents_follow_a_slice(model):
    _, cache = model.run_with_cache(ITEMS, positions=REGULAR)
    assert torch.equal(cache[..., 1:]["hook_latent"], cache["hook_latent"][:, 1:])
    assert "hook_latent" not in cache[..., -1] and "hook_latent" not in list(cache[..., -1])


def test_one_item_without_a_batch_axis(model):
    cache = with_inside(model, lambda: model.run_with_cache(ITEMS[:1])[1])
    bare = cache.remove_batch_dim()
    assert torch.equal(bare["resid_post", 0], cache["resid_post", 0][0])
    for make in (
        lambda c: c.decompose_resid(apply_ln=True),
        lambda c: c.stack_head_results(),
        lambda c: c.stack_activation("k"),
    ):
        assert torch.equal(make(bare), make(cache)[:, 0])
    assert bare.decompose_resid(pos_slice=-1).shape == (2 * LAYERS + 1, WIDTH)
    shares = bare.logit_attrs(bare.decompose_resid(), 5)
    assert torch.equal(shares, cache.logit_attrs(cache.decompose_resid(), 5)[:, 0])
    with pytest.raises(SettingError, match="5 items"):
        model.run_with_cache(ITEMS, "resid_pre")[1].remove_batch_dim()


def test_an_edit_of_the_stream_leaves_a_remainder_and_the_sum_is_exact(model):
    edit = Edit(op=Zero(), positions=latent, site="blocks.1.hook_resid_mid")
    _, cache = model.edited(edit).run_with_cache(ITEMS, positions=latent)
    before, labels = cache.decompose_resid(1, return_labels=True)
    assert "remainder" not in labels and close(before.sum(0), stream(cache, 1))
    stack, labels = cache.decompose_resid(return_labels=True)
    assert labels[-1] == "remainder" and close(stack.sum(0), stream(cache, LAYERS))
    assert close(stack[-1], -(cache["resid_pre", 1] + cache["attn_out", 1]))
    _, lacking = model.edited(edit).run_with_cache(ITEMS, ["resid_pre", "attn_out", "mlp_out"], positions=latent)
    with pytest.raises(
        SiteError,
        match=r"an edit wrote to 'blocks.1.hook_resid_mid'.*\n(.*\n)*.*'blocks.2.hook_resid_post' in names_filter",
    ):
        lacking.decompose_resid()
    assert close(lacking.decompose_resid(1).sum(0), stream(cache, 1))


@pytest.mark.parametrize(
    "site", ["hook_latent", "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_v"]
)
def test_edits_of_what_is_written_leave_none(model, site: str):
    view = model.edited(Edit(op=Scale(3.0), positions=latent, site=site))
    _, cache = view.run_with_cache(ITEMS, positions=latent)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert "remainder" not in labels and close(stack.sum(0), stream(cache, LAYERS))


def test_an_edit_of_the_attention_output_is_told_apart_from_the_heads(model):
    view = model.edited(Edit(op=Scale(3.0), positions=latent, site="blocks.1.hook_attn_out"))
    cache = with_inside(model, lambda: view.run_with_cache(ITEMS, positions=latent)[1])
    stack, labels = cache.stack_head_results(return_labels=True)
    assert labels[-1] == "remainder"
    assert close(stack[-1], cache["attn_out", 1] * (2 / 3), 1e-9)


def test_what_a_method_needs_is_said(model):
    _, cache = model.run_with_cache(ITEMS[:2], "attn_out", positions=latent)
    with pytest.raises(
        SiteError,
        match=r"holds no 'blocks.0.hook_resid_pre', 'blocks.0.hook_mlp_out'(.*\n)*.*names_filter=\['attn_out', 'resid_pre', 'mlp_out'\]",
    ):
        cache.decompose_resid()
    for call in (lambda: cache.accumulated_resid(), lambda: cache.stack_head_results(), lambda: cache.stack_neuron_results(1),
                 lambda: cache.apply_ln_to_stack(torch.zeros(1, 2, STEPS, WIDTH)), lambda: cache.stack_activation("k")):  # fmt: skip
        with pytest.raises(SiteError, match="run again with names_filter"):
            call()
    assert cache.decompose_resid(mode="attn", incl_embeds=False).shape == (LAYERS, 2, STEPS, WIDTH)
    for layer in (-2, LAYERS + 1):
        with pytest.raises(SiteError, match=f"layer = {layer}"):
            cache.decompose_resid(layer)
    with pytest.raises(SettingError, match="mode='mid'"):
        cache.decompose_resid(mode="mid")
    with pytest.raises(SettingError, match="no components"):
        cache.decompose_resid(0, mode="attn", incl_embeds=False)
    with pytest.raises(SiteError, match="no readout"):
        replace(cache, readout=None).decompose_resid()


def test_stacks_and_tokens_that_do_not_fit_are_refused(regular, unchecked):
    stack = regular.decompose_resid()
    for wrong in (stack[:, :, 1:], stack[0, 0], stack[:, :1]):
        with pytest.raises(SettingError, match="pos_slice with which the stack was made"):
            regular.logit_attrs(wrong, 3)
    vocabulary = regular.readout.W_U.shape[1]
    for tokens, message in (
        ("A", "holds no tokenizer"), (vocabulary, f"from 0 to {vocabulary - 1}"), (-1, "ids from -1"),
        (torch.zeros(4, dtype=torch.long), r"\[5\] \(one an item\)"), (torch.zeros(5), "type torch.float32"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            regular.logit_attrs(stack, tokens)


def test_half_precision_parts_sum_within_its_rounding_and_shares_are_float32():
    model = model_of(dtype=torch.bfloat16)
    _, cache = model.run_with_cache(ITEMS, positions=latent)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert "remainder" not in labels and stack.dtype == torch.bfloat16
    shares = cache.logit_attrs(stack, 5)
    assert shares.dtype == torch.float32
    logits = model.run_with_cache(ITEMS, "resid_pre", positions=latent)[0][..., 5].float()
    assert float((shares.sum(0) - logits).abs().max()) < 0.05 * float(logits.abs().max())


def test_a_shipped_model_whose_answers_are_explained_part_by_part():
    model = pl.load("tiny/lvr")
    items = pl.load_items("shapes", n=4)
    logits, cache = model.run_with_cache(items, positions=answer.source)
    stack, labels = cache.decompose_resid(return_labels=True)
    shares = cache.logit_attrs(stack, logits.argmax(-1), incorrect_tokens=3)
    expected = logits.amax(-1) - logits[..., 3]
    assert len(labels) == len(shares) and float((shares.sum(0) - expected).abs().max()) < 1e-4 * float(expected.max())


def test_a_copy_elsewhere_is_the_same(regular):
    moved = regular.to("cpu")
    assert list(moved) == list(regular) and torch.equal(moved["resid_post", 2], regular["resid_post", 2])
    assert torch.equal(moved.decompose_resid(), regular.decompose_resid())


def test_a_readout_of_other_weights_is_refused(regular, model):
    other = model_of(seed=1).readout
    with pytest.raises(SettingError, match=other.weights):
        regular.with_readout(other)
    again = replace(regular, readout=regular.readout.only_norms()).with_readout(model.readout)
    assert torch.equal(again.logit_attrs(again.decompose_resid(), 3), regular.logit_attrs(regular.decompose_resid(), 3))


def test_weights_are_held_by_reference(model):
    readout = model.readout
    layers = model.hf.model.language_model.layers
    assert readout.W_U.data_ptr() == model.hf.lm_head.weight.data_ptr()
    assert all(
        block.W_O.data_ptr() == layer.self_attn.o_proj.weight.data_ptr()
        for block, layer in zip(readout.blocks, layers, strict=True)
    )
