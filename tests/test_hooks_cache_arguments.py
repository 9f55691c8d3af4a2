"""`run_with_cache`'s slices, stops, devices and batch axis, and names that need a switch of attention."""

import pytest
import torch

from prismlens.data.shapes import shapes
from prismlens.errors import ItemError, SettingError, SiteError
from prismlens.positions import answer, latent
from tests.plain_hooks import LAYERS, Twins, twins

ITEMS = shapes(4, seed=3)


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture(scope="module")
def run(pair: Twins):
    return pair.traced.generate(ITEMS)


@pytest.mark.parametrize("stop", [0, 1, LAYERS, -1])
def test_nothing_from_the_stop_on_is_computed(pair, run, stop: int):
    model, reached = pair.traced, []
    language = model.hf.model.language_model
    parts = [(f"{i}", layer.self_attn.q_proj) for i, layer in enumerate(language.layers)]
    parts += [("norm", language.norm), ("head", model.hf.lm_head)]
    handles = [part.register_forward_hook(lambda *_, name=name: reached.append(name)) for name, part in parts]
    names = None if stop else "hook_embed"
    logits, cache = model.run_with_cache(ITEMS, names, run=run, stop_at_layer=stop, positions=latent)
    for handle in handles:
        handle.remove()
    last = stop % LAYERS if stop < 0 else stop
    assert reached == [str(layer) for layer in range(last)] and logits is None
    _, whole = model.run_with_cache(ITEMS, names, run=run, positions=latent)
    assert list(cache) == [name for name in whole if ("blocks" not in name and not name.startswith(("ln_", "un")))
                           or name.startswith(tuple(f"blocks.{i}." for i in range(last)))]  # fmt: skip
    assert all(torch.equal(cache[name], whole[name]) for name in cache)


@pytest.mark.parametrize(
    ("pos_slice", "index"),
    [(-1, [-1]), (0, [0]), ([3, -2], [3, -2]), (slice(-3, None), [-3, -2, -1]), ((1, 3), [1, 2]), (slice(2), [0, 1])],
)
def test_a_slice_is_of_each_items_own_positions(pair, run, pos_slice, index: list[int]):
    logits, cache = pair.traced.run_with_cache(ITEMS, ["resid_post", "pattern"], run=run, pos_slice=pos_slice)
    _, whole = pair.traced.run_with_cache(ITEMS, ["resid_post", "pattern"], run=run)
    for row in range(len(ITEMS)):
        mine = whole.positions.rows == row
        assert torch.equal(cache["resid_post", 1][row], whole.flat("blocks.1.hook_resid_post")[mine][index])
        pattern = whole.flat("blocks.1.attn.hook_pattern")[mine][index]
        assert torch.equal(cache["pattern", 1][row], pattern.transpose(0, 1))
    assert logits.shape[:2] == (len(ITEMS), len(index))


def test_a_single_item_may_go_without_its_axis(pair):
    logits, cache = pair.traced.run_with_cache(ITEMS[:1], ["resid_post", "pattern"], remove_batch_dim=True)
    plain, kept = pair.traced.run_with_cache(ITEMS[:1], ["resid_post", "pattern"])
    assert torch.equal(logits, plain[0]) and all(torch.equal(cache[name], kept[name][0]) for name in kept)
    assert cache["pattern", 0].ndim == 3
    with pytest.raises(SettingError, match="remove_batch_dim = True for 4 items"):
        pair.traced.run_with_cache(ITEMS, remove_batch_dim=True)


def test_the_cache_lies_on_the_device_that_was_asked_for(pair, run):
    logits, cache = pair.traced.run_with_cache(ITEMS, "resid_post", run=run, positions=answer[:1], device="meta")
    assert logits.device.type == cache["resid_post", 0].device.type == "meta"


def test_attention_is_switched_for_the_run_that_needs_it_and_back_after_an_error(pair, run):
    text = pair.traced.hf.model.language_model.config
    seen = []
    handle = pair.traced.hf.model.language_model.register_forward_pre_hook(
        lambda *_: seen.append(text._attn_implementation)
    )
    pair.traced.run_with_cache(ITEMS, "resid_post", run=run, positions=latent)
    pair.traced.run_with_cache(ITEMS, "pattern", run=run, positions=latent)
    with pytest.raises(ZeroDivisionError):
        pair.traced.run_with_hooks(ITEMS, [("attn_scores", lambda value, hook: 1 / 0)], mode="held", run=run)
    handle.remove()
    assert seen == ["sdpa", "prismlens_hooked", "prismlens_hooked"] and text._attn_implementation == "sdpa"


def test_an_exception_in_a_trace_takes_the_switch_back(pair, run):
    with pytest.raises(ZeroDivisionError):  # noqa: SIM117  (nnsight takes the block of the `with` that opens the trace)
        with pair.traced.trace(ITEMS, run=run):
            pair.traced.blocks[0].attn.hook_pattern[:] = 1 / 0
    assert pair.traced.hf.model.language_model.config._attn_implementation == "sdpa"
    with pytest.raises(Exception, match="outside a trace"):
        pair.traced.blocks[0].attn.hook_pattern  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"pos_slice": 500}, ItemError, "pos_slice = 500 names no position of item"),
        ({"pos_slice": -1, "positions": latent}, SettingError, "needed: one of them"),
        ({"stop_at_layer": LAYERS + 1}, SettingError, f"stop_at_layer = {LAYERS + 1}"),
        ({"stop_at_layer": 1, "names_filter": "blocks.2.hook_resid_pre"}, SiteError, "stop_at_layer is 1"),
        ({"names_filter": "hook_latent_head"}, SiteError, "no LVR head"),
        ({"prepend_bos": True}, TypeError, "unexpected keyword argument 'prepend_bos'"),
    ],
)
def test_arguments_that_cannot_be_met_are_errors(pair, run, arguments, error, text: str):
    with pytest.raises(error, match=text):
        pair.traced.run_with_cache(ITEMS, **{"run": run, **arguments})


def test_chosen_heads_are_those_of_the_whole_square_and_no_more(pair, run):
    model = pair.traced
    _, whole = model.run_with_cache(ITEMS, ["pattern", "attn_scores"], run=run, positions=latent)
    logits, some = model.run_with_cache(
        ITEMS, ["pattern", "attn_scores"], run=run, positions=latent, heads=[1], return_type=None
    )
    assert logits is None and list(some) == list(whole) and some.manifest["heads"] == [1]
    for name in whole:
        assert torch.equal(some[name], whole[name][:, [1]])
        assert 2 * some.flat(name).untyped_storage().nbytes() == whole.flat(name).nbytes, "nothing else is kept alive"


def test_arguments_that_make_no_sense_say_so(pair, run, unchecked):
    model = pair.traced
    with pytest.raises(SettingError, match=r"heads = \[1\] at blocks.0.hook_resid_post[\s\S]*pattern"):
        model.run_with_cache(ITEMS, ["pattern", "resid_post"], run=run, heads=[1])
    for heads in ([2], [-1], [], [1, 0], [1, 1]):
        with pytest.raises(SettingError, match=r"different heads from 0 to 1"):
            model.run_with_cache(ITEMS, "pattern", run=run, heads=heads)
    with pytest.raises(SettingError, match="computed from the logits"):
        model.run_with_cache(
            ITEMS, "resid_post", run=run, incl_bwd=True, metric=lambda logits: logits.sum(), return_type=None
        )
    with pytest.raises(SettingError, match="return_type = 'loss'"):
        model.run_with_cache(ITEMS, "resid_post", run=run, return_type="loss")
