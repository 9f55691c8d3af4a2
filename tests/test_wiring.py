"""The self-check: a sound model passes in any guise, and each way of breaking one is named by its site and layer."""

import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from prismlens import sites, trace
from prismlens.data.shapes import shapes
from prismlens.errors import WiringError
from prismlens.models import loop
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.trace import PrismModel, wiring_edits
from prismlens.trace.wiring import check_wiring
from tests.plain_hooks import LAYERS, NAMES, STEPS, Twins, plain_run, same, twins
from tests.plain_hooks import recording as recorded

Model = LVRForConditionalGeneration


def layers(hf: Model):
    return hf.model.language_model.layers


@cache
def sound() -> Twins:
    return twins()


def unchecked_model(**config) -> tuple[Model, Twins]:
    """A model that nnsight has not wrapped yet, so that patches of `forward` are part of it."""
    pair = twins(**config) if config else sound()
    return deepcopy(pair.plain), pair


def complaint(hf: Model, pair: Twins) -> str:
    with pytest.raises(WiringError) as caught:
        trace.load((hf, pair.processor))
    return str(caught.value).splitlines()[0]


GUISES: dict[str, dict] = {
    "one stage": {},
    "no latents": {"latent_entry": "none"},
    "entered by itself": {"latent_entry": "emitted"},
    "one latent": {"latent_steps": 1},
    "other exit": {"latent_exit": "end_token"},
    "head": {"lvr_head": "simple"},
    "gated head and end vector": {"lvr_head": "gated", "latent_end_token": True, "latent_exit": "end_vector"},
    "hidden slots": {"visibility": [{"query": "answer", "key": "latent"}, {"query": "latent", "key": "image", "layers": [1]}]},
}  # fmt: skip


@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_sound_model_passes_whole(guise: str, dtype: torch.dtype):
    hf, pair = unchecked_model(**GUISES[guise])
    found = trace.load((hf.to(dtype), pair.processor), check=False).check()
    names = [name for name in NAMES if guise != "no latents" or name != "hook_latent"]
    assert list(found.sites) == names + (["hook_latent_head"] if "head" in guise else [])
    assert found.faults == () and bool(found.frame().sound.all()) and len(found.frame()) == len(found.sites)


def test_the_check_leaves_nothing_behind():
    pair = twins()
    hf, kind = pair.traced.hf, pair.traced.hf.config._attn_implementation
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pair.traced.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()] == hooks
    assert hf.config._attn_implementation == hf.config.text._attn_implementation == kind
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert hf.model.rope_deltas is None and not hf.training
    items = shapes(2, seed=0)
    run, record = plain_run(pair, items)
    with recorded(hf) as again:
        checked = pair.traced.generate(items)
    assert torch.equal(checked.latents, run.latents) and same(again.logits, record.logits)


def test_it_takes_little_time():
    model = trace.load("tiny/lvr", check=False)
    times = []
    for _ in range(3):
        start = time.process_time()
        model.check()
        times.append(time.process_time() - start)
    assert min(times) < 1


def ignore_input(hf: Model) -> None:
    forward = layers(hf)[1].forward
    layers(hf)[1].forward = lambda states, *args, **kwargs: forward(torch.ones_like(states), *args, **kwargs)


def skip_layer(hf: Model) -> None:
    layers(hf)[1].forward = lambda states, *args, **kwargs: states


def scale_output(hf: Model) -> None:
    forward = layers(hf)[1].forward
    layers(hf)[1].forward = lambda *args, **kwargs: forward(*args, **kwargs) * (1 + 2**-20)


def cut_attention(hf: Model) -> None:
    with torch.no_grad():
        layers(hf)[2].self_attn.o_proj.weight.zero_()


def swap_projections(hf: Model) -> None:
    attention = layers(hf)[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


def swap_layers(hf: Model) -> None:
    layers(hf)[0], layers(hf)[2] = layers(hf)[2], layers(hf)[0]


def scale_rows(hf: Model) -> None:
    forward = layers(hf)[1].self_attn.forward

    def scaled(*args, **kwargs):
        output, weights = forward(*args, **kwargs)
        return output, None if weights is None else weights * 0.9

    layers(hf)[1].self_attn.forward = scaled


def forget_mask(hf: Model) -> None:
    forward = layers(hf)[1].forward
    layers(hf)[1].forward = lambda *args, **kwargs: forward(*args, **kwargs | {"attention_mask": None})


def alter_latent(hf: Model) -> None:
    hf.hook_latent.forward = lambda value: value * (1 + 2**-20)


BROKEN: dict[str, tuple[Callable[[Model], None], str]] = {
    "a layer ignores its input": (ignore_input, r"^blocks\.1\.hook_resid_mid fails the check of its stream: .*\(and .*blocks\.1\.hook_resid_pre"),
    "a layer is skipped": (skip_layer, r"^blocks\.1\.ln1\.hook_scale fails the check of its fires: .*did not fire .*blocks\.1\.attn\.hook_q"),
    "a layer's output is scaled by one part in a million": (scale_output, r"^blocks\.1\.hook_resid_post fails the check of its stream: it is not hook_resid_mid \+ hook_mlp_out"),
    "a layer's attention writes nothing": (cut_attention, r"^blocks\.2\.ln1\.hook_scale fails the check of its edit: a change of it does not change blocks\.2\.hook_resid_post \(and 5 more: blocks\.2\.attn\.hook_k, blocks\.2\.attn\.hook_q, blocks\.2\.attn\.hook_v"),
    "queries and keys swapped": (swap_projections, r"^blocks\.0\.attn\.hook_q fails the check of its path: .*q_proj gives 32 numbers a position instead of 64"),
    "layers swapped": (swap_layers, r"^blocks\.0\.hook_resid_pre fails the check of its path: the layer there is the one of index 2 \(and 1 more: blocks\.2"),
    "rows of attention": (scale_rows, r"^blocks\.1\.attn\.hook_pattern fails the check of its attention: its rows sum to numbers from 0\.9 to 0\.9"),
    "a layer without its mask": (forget_mask, r"^blocks\.1\.attn\.hook_pattern fails the check of its attention: a key that the mask hides has weight"),
    "latents that change on the way in": (alter_latent, r"^hook_latent fails the check of its latent: what is fed at step 0 is not the state"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_model_is_refused_by_the_name_of_the_site(how: str):
    hf, pair = unchecked_model()
    break_it, message = BROKEN[how]
    break_it(hf)
    assert re.search(message, complaint(hf, pair)), complaint(hf, pair)
    assert isinstance(trace.load((hf, pair.processor), check=False), PrismModel)


TABLES: dict[str, tuple[str, tuple[str, str], str]] = {
    "another module": ("hook_attn_out", (".self_attn.q_proj", "output"), r"blocks\.0\.hook_resid_mid .*stream: it is not hook_resid_pre \+ hook_attn_out .*blocks\.0\.hook_attn_out"),
    "another norm": ("hook_resid_mid", (".input_layernorm", "shared"), r"blocks\.0\.hook_resid_mid .*stream: it is not hook_resid_pre \+ hook_attn_out"),
    "another end": ("hook_mlp_out", (".mlp", "input"), r"blocks\.0\.hook_mlp_out .*cannot be read after blocks\.0\.mlp\.hook_post"),
    "the weighted norm": ("hook_mlp_out", (".post_attention_layernorm", "output"), r"blocks\.0\.hook_resid_post .*stream: it is not hook_resid_mid \+ hook_mlp_out"),
    "no module": ("hook_mlp_out", (".mlpp", "output"), r"blocks\.0\.hook_mlp_out .*path: the model has no module model\.language_model\.layers\.0\.mlpp \(and 2 more"),
}  # fmt: skip


@pytest.mark.parametrize("how", TABLES)
def test_a_wrong_line_in_the_table_of_sites_is_named(how: str, monkeypatch: pytest.MonkeyPatch):
    name, place, message = TABLES[how]
    hf, pair = unchecked_model()
    monkeypatch.setattr(
        "prismlens.sites.names.PER_LAYER",
        {**sites.PER_LAYER, name: replace(sites.PER_LAYER[name], path=place[0], end=place[1])},
    )
    assert re.search(message, complaint(hf, pair)), complaint(hf, pair)


def test_every_block_on_one_layer_is_named(monkeypatch: pytest.MonkeyPatch):
    hf, pair = unchecked_model()
    monkeypatch.setattr("prismlens.sites.names.BLOCK_PATH", "model.language_model.layers.0")
    assert "blocks.1.hook_resid_pre fails the check of its stream: it is not what leaves block 0" in complaint(hf, pair)


@pytest.mark.parametrize("back", [1, 2])
def test_an_older_latent_fed_again_is_named(back: int, monkeypatch: pytest.MonkeyPatch):
    """The vector that the run records is the one that it feeds, so only the state before it shows what is wrong."""
    hf, pair = unchecked_model()
    own = loop.next_column

    def late(model, run, *rest):
        column = own(model, run, *rest)
        enough = run.latents.shape[1] >= back
        return replace(column, vectors=run.latents[:, -back]) if enough else column

    monkeypatch.setattr(loop, "next_column", late)
    assert f"what is fed at step {back} is not the state that the model made just before" in complaint(hf, pair)


def test_another_latent_recorded_than_fed_is_named(monkeypatch: pytest.MonkeyPatch):
    hf, pair = unchecked_model()
    own = loop.append

    def rolled(run, *rest, **more):
        made = own(run, *rest, **more)
        return replace(made, latents=made.latents.roll(1, 1)) if made.latents.shape[1] == STEPS else made

    monkeypatch.setattr(loop, "append", rolled)
    assert "what is fed at step 0 is not what the run recorded as latent 0" in complaint(hf, pair)


def test_a_cache_that_forgets_is_named(monkeypatch: pytest.MonkeyPatch):
    """The latents are then still fed as they were made, but one forward over the whole sequence makes others."""
    hf, pair = unchecked_model()
    own = loop.DynamicCache.update

    def forgetful(self, keys: Tensor, values: Tensor, layer: int, *rest, **more):
        keys, values = own(self, keys, values, layer, *rest, **more)
        return keys, values * (1 if layer != 1 or (values.shape[2] == keys.shape[2] and keys.shape[2] < 2) else 0.5)

    monkeypatch.setattr(loop.DynamicCache, "update", forgetful)
    assert "ln_final fails the check of its replay" in complaint(hf, pair)


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_is_lost_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    """As where a module's output is replaced and the model goes on with the old one: the read shows what was written."""
    hf, pair = unchecked_model()
    own = wiring_edits.traced_step

    def losing(wrapper, inputs, writes, reads):
        kept = [write for write in writes if not (write.site.name == name and write.change is wiring_edits._shifted)]
        got = own(wrapper, inputs, kept, reads)
        if len(kept) < len(writes) and name.endswith("hook_resid_post"):
            got.values[name] += 1
        return got

    monkeypatch.setattr(wiring_edits, "traced_step", losing)
    if name == f"blocks.{LAYERS - 1}.hook_resid_post":
        assert (
            complaint(hf, pair)
            == f"{name} fails the check of its edit: a change of it changes nothing that the forward gives"
        )
    else:
        first = complaint(hf, pair)
        assert first.startswith(f"{name} fails the check of its edit: ") and "more" not in first


@pytest.mark.parametrize("name", ["hook_latent", "blocks.0.attn.hook_k", "blocks.2.hook_resid_post"])
def test_a_write_of_what_is_there_that_changes_something_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    hf, pair = unchecked_model()
    own = wiring_edits.Write

    def noisy(place, mask, change):
        idle = change.__qualname__.startswith("_loud") and place.name == name
        return own(place, mask, (lambda values, _: values * (1 + 2**-10)) if idle else change)

    monkeypatch.setattr(wiring_edits, "Write", noisy)
    assert (
        complaint(hf, pair)
        == f"{name} fails the check of its no-op: writing the values that are there changes the output"
    )


def test_a_view_is_checked_without_its_edits():
    model = trace.load("tiny/lvr", check=False)
    assert trace.corrupt(model).check().faults == ()


def test_the_frame_has_a_row_for_what_is_wrong():
    hf, pair = unchecked_model()
    scale_rows(hf)
    model = trace.load((hf, pair.processor), check=False)
    with pytest.raises(WiringError):
        model.check()
    frame = check_wiring(hf, model.engine.wrapper, pair.processor, pair.settings).frame()
    wrong = frame[~frame.sound]
    assert list(wrong.site) == ["blocks.1.attn.hook_pattern"] and "rows sum" in wrong.fault.iloc[0]
    assert len(frame) == len(NAMES) + 1
