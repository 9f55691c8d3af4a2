"""`run_with_hooks`, `hooks` and `generate` under hooks: against plain hooks, and how often each function is called."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import EditError, SettingError, SiteError
from prismlens.interventions import Edit, Scale
from prismlens.models.hooked_attention import attention_hooked
from prismlens.positions import answer, image, latent, question
from prismlens.trace import PrismModel
from tests.plain_hooks import LAYERS, STEPS, TOKENS, Twins, hooked, plain_run, relative, twins, whole

ITEMS = shapes(4, seed=3)
FORWARDS = 1 + STEPS + 2 + TOKENS
"""The prompt, the latents, two forced tokens and those written, each in a forward of its own."""


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture
def model(pair: Twins) -> PrismModel:
    return pair.traced


def double(value: Tensor, *, hook) -> Tensor:
    return value * 2


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_rot_k"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_free_hook_is_a_plain_hook_in_every_forward(pair, name: str, count: int):
    items = ITEMS[:count]
    with torch.no_grad(), attention_hooked(pair.plain.model.language_model, "attn" in name):
        expected, record = plain_run(
            pair, items, {number: [(name, lambda value: value * 2)] for number in range(FORWARDS)}
        )
    logits, run = pair.traced.run_with_hooks(items, [(name, double)], return_type="both")
    assert torch.equal(run.latents, expected.latents) and torch.equal(run.unrolled.input_ids, expected.input_ids)
    assert torch.equal(logits, torch.stack(record.logits, 1)[:, : logits.shape[1]])
    clean = pair.traced.generate(items)
    assert not torch.equal(run.latents, clean.latents)
    assert pair.traced.hf.model.language_model.config._attn_implementation == "sdpa"


def test_a_held_hook_is_called_once_with_the_whole_sequences_and_changes_no_latent(pair, model):
    seen = []
    clean = model.generate(ITEMS)

    def change(value: Tensor, *, hook) -> Tensor:
        seen.append((hook.name, hook.layer(), hook.columns, hook.items, hook.unrolled.latents))
        return value * 2

    logits = model.run_with_hooks(ITEMS, [("blocks.1.hook_out", change)], mode="held")
    ((name, layer, columns, items, latents),) = seen
    assert (name, layer, items) == ("blocks.1.hook_resid_post", 1, tuple(ITEMS))
    assert columns == slice(0, clean.unrolled.shape[1]) and torch.equal(latents, clean.latents)
    with torch.no_grad(), hooked(pair.plain, "blocks.1.hook_resid_post", lambda value: value * 2):
        plain = pair.plain.step(**whole(pair, clean.unrolled)).logits[:, clean.unrolled.n_prompt - 1 : -1]
    there = ~logits.isnan()
    assert relative(logits[there], plain[there]) < 1e-6
    held = model.run_with_hooks(ITEMS, [("blocks.1.hook_out", lambda value, hook: None)], mode="held", run=clean)
    assert held.shape == logits.shape == (4, clean.unrolled.shape[1] - clean.unrolled.n_prompt, held.shape[-1])
    assert not torch.equal(held, logits)
    free = model.run_with_hooks(ITEMS, [("blocks.1.hook_out", lambda value, hook: None)])
    there = ~free.isnan()
    assert torch.equal(there, ~held.isnan()) and relative(held[there], free[there]) < 1e-5


@pytest.mark.parametrize("mode", ["free", "held"])
def test_positions_give_a_function_exactly_those_values(model, mode: str):
    seen = []

    def look(value: Tensor, *, hook) -> None:
        seen.append((hook.forward, tuple(value.shape)))

    model.run_with_hooks(ITEMS, [("blocks.1.attn.hook_q", look)], mode=mode, positions=latent[1:])
    shape = (2, 32)
    expected = [(2, (4, *shape)), (3, (4, *shape))] if mode == "free" else [(0, (8, *shape))]
    assert seen == expected


@torch.no_grad()
def test_a_hook_at_positions_is_the_edit_at_those_positions(model):
    by_hook = model.run_with_hooks(
        ITEMS, [("blocks.1.hook_resid_mid", double)], positions=latent[0] | image, return_type="run"
    )
    view = model.edited(Edit(op=Scale(2.0), positions=latent[0] | image, site="blocks.1.hook_resid_mid"))
    assert torch.equal(by_hook.latents, view.generate(ITEMS).latents)


def test_changes_in_place_and_returned_tensors_are_the_same_change(model):
    def in_place(value: Tensor, *, hook) -> None:
        value *= 2

    a, b, c = (
        model.run_with_hooks(ITEMS[:2], [("attn_out", function)], return_type="run").latents
        for function in (double, in_place, lambda value, hook: None)
    )
    assert torch.equal(a, b) and torch.equal(c, model.generate(ITEMS[:2]).latents) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("hook_latent", STEPS),
        ("hook_embed", FORWARDS),
        ("hook_vision_out", 1),
        ("unembed.hook_out", FORWARDS),
        ("pattern", LAYERS * FORWARDS),
        (lambda name: name.endswith("hook_resid_post") and not name.startswith("vision"), LAYERS * FORWARDS),
    ],
)
def test_each_function_is_called_once_each_time_its_site_is_reached(model, name, times: int):
    calls = []
    model.run_with_hooks(ITEMS[:2], [(name, lambda value, hook: calls.append(hook.forward))])
    assert len(calls) == times


def test_a_replaced_scale_is_what_the_normalised_state_is_divided_by(model):
    seen: dict[str, list[Tensor]] = {"clean": [], "scaled": []}
    for key, hooks in (("clean", []), ("scaled", [("blocks.1.ln2.hook_scale", double)])):
        look = ("blocks.1.ln2.hook_normalized", lambda value, hook, key=key: seen[key].append(value))
        model.run_with_hooks(ITEMS[:2], [*hooks, look], mode="held")
    assert relative(seen["scaled"][0] * 2, seen["clean"][0]) < 1e-6


def test_several_hooks_at_one_site_act_in_order_and_after_edits(model):
    view = model.edited(Edit(op=Scale(0.0), positions=latent, site="hook_latent"))
    seen = []
    chain = [
        ("hook_latent", lambda value, hook: value + 1),
        ("hook_latent", lambda value, hook: value * 3),
        ("hook_latent", lambda value, hook: seen.append(value)),
    ]
    view.run_with_hooks(ITEMS[:2], chain)
    assert len(seen) == STEPS and all(bool((value == 3).all()) for value in seen)


def test_a_context_applies_to_generate_and_run_with_cache_and_ends_with_an_exception(model):
    clean = model.generate(ITEMS)
    with model.hooks([("blocks.0.hook_mlp_out", double)]) as same:
        assert same is model
        run = model.generate(ITEMS)
        _, cache = model.run_with_cache(ITEMS, "mlp_out", positions=latent, run=run)
        assert torch.equal(model.edited().generate(ITEMS).latents, run.latents)
        assert torch.equal(model.clean().generate(ITEMS).latents, clean.latents)
    assert not torch.equal(run.latents, clean.latents)
    _, before = model.run_with_cache(ITEMS, "mlp_out", positions=latent[0], run=clean)
    assert cache["mlp_out", 0].shape == (4, STEPS, 64) and not torch.equal(
        cache["mlp_out", 0][:, :1], before["mlp_out", 0]
    )
    with pytest.raises(ZeroDivisionError), model.hooks([("blocks.0.hook_mlp_out", lambda value, hook: 1 / 0)]):
        model.generate(ITEMS[:1])
    assert torch.equal(model.generate(ITEMS).latents, clean.latents)


def test_batches_and_views_do_not_matter(pair, model):
    large = model.run_with_hooks(ITEMS, [("z", double)])
    small = replace(model, batch_size=3).run_with_hooks(ITEMS, [("z", double)])
    there = ~large.isnan()
    assert torch.equal(there, ~small.isnan()) and relative(small[there], large[there]) < 1e-5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("hooks", "arguments", "error", "text"),
    [
        ([("blocks.1.hook_resid_pots", double)], {}, SiteError, "asks for 'blocks.1.hook_resid_pots'\n.*resid_post"),
        ([("blocks.9.hook_resid_post", double)], {}, SiteError, "asks for 'blocks.9.hook_resid_post'"),
        ([("hook_latent_head", double)], {}, SiteError, "asks for 'hook_latent_head'"),
        ([(lambda name: False, double)], {}, SiteError, "lets no name through"),
        ([], {}, EditError, "no hooks were given"),
        ([("hook_embed", lambda value: value)], {}, EditError, r"cannot be called as fn\(value, hook=hook\)"),
        ([("hook_embed", lambda value, hook: value[:, :1])], {}, EditError, "a change at hook_embed returned"),
        ([("hook_embed", lambda value, hook: value.double())], {}, EditError, "torch.float64"),
        ([("hook_embed", lambda value, hook: 3)], {}, EditError, "returned a int"),
        ([("hook_latent", double)], {"positions": question}, EditError, "hook at hook_latent was called 0 times"),
        ([("hook_latent", double)], {"positions": question | latent}, EditError, "was asked for at"),
        ([("hook_embed", double)], {"positions": answer.first}, EditError, "other positions|was called"),
        ([("hook_vision_out", double)], {"positions": latent}, SiteError, "no positions: its rows are patches"),
        ([("hook_embed", double)], {"mode": "both"}, SettingError, "mode = 'both'"),
        ([("hook_embed", double)], {"mode": "held", "return_type": "run"}, SettingError, "decodes nothing"),
        ([("hook_embed", double)], {"return_type": "text"}, SettingError, "return_type = 'text'"),
        ([("hook_embed", double)], {"metric": lambda logits: logits.sum()}, SettingError, "a metric without backward"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(model, hooks, arguments, error, text: str):
    with pytest.raises(error, match=text):
        model.run_with_hooks(ITEMS[:1], hooks, **arguments)
    with pytest.raises(TypeError, match="unexpected keyword"):
        model.run_with_hooks(ITEMS[:1], hooks, prepend_bos=True)


def test_a_model_without_latents_has_no_latent_to_hook():
    model = twins(latent_entry="none").traced
    with pytest.raises(EditError, match=r"hook at hook_latent was called 0 times\n.*a run that reaches the site"):
        model.run_with_hooks(ITEMS[:1], [("hook_latent", double)])


def test_hook_dict_and_cfg_say_what_there_is(model):
    assert model.hook_dict["blocks.2.attn.hook_k"].axes == "batch pos kv_head d_head"
    assert model.hook_dict["blocks.0.attn.hook_pattern"].eager and "hook_latent_head" not in model.hook_dict
    cfg = model.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.d_model, cfg.d_head) == (LAYERS, 2, 1, 64, 32)
    assert (cfg.n_vision_layers, cfg.d_vision, cfg.eps, cfg.act_fn, cfg.d_mlp) == (2, 64, 1e-6, "silu", 192)
    with pytest.raises(SiteError, match=r"hook.layer\(\) at 'hook_embed'"):
        model.run_with_hooks(ITEMS[:1], [("hook_embed", lambda value, hook: hook.layer())])
