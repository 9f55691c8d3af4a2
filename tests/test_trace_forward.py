"""One traced forward against PyTorch's own hooks on an untraced twin, bit for bit, at every site."""

import pytest
import torch
from nnsight import NNsight
from torch import Tensor, nn

from prismlens.data.shapes import shapes
from prismlens.errors import EditError
from prismlens.models.lvr import StepOutput
from prismlens.sites import Site, site
from prismlens.trace.forward import Read, Write, traced_step
from prismlens.unrolled import Unrolled
from tests.plain_hooks import LAYERS, NAMES, STEPS, Twins, hooked, module_of, plain_run, reading, twins, whole

ITEMS = shapes(7, seed=3)


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture(scope="module", params=[1, 7], ids=["alone", "padded batch"])
def run(pair: Twins, request) -> Unrolled:
    run, _ = plain_run(pair, ITEMS[: request.param])
    assert request.param == 1 or not bool(run.valid.all()), "the batch has to need padding"
    return run


def some(run: Unrolled) -> Tensor:
    """About half of the positions, latents among them."""
    chosen = torch.rand(run.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    chosen[:, run.n_prompt + 1] = True
    return run.valid & chosen


def slots(name: str, mask: Tensor, run: Unrolled) -> Tensor:
    """The mask over the site's own second axis: latent steps at `hook_latent`, columns elsewhere."""
    if name != "hook_latent":
        return mask
    out = torch.zeros(len(mask), STEPS, dtype=torch.bool)
    for row, column in mask.nonzero().tolist():
        if run.steps[row, column] >= 0:
            out[row, run.steps[row, column]] = True
    return out


def other(values: Tensor) -> Tensor:
    """A change that no site can undo (a shift of all keys, for one, would leave attention as it is)."""
    return values * 1.5 + 0.25


@torch.no_grad()
def traced(pair: Twins, run: Unrolled, writes=(), reads=(), **inputs):
    return traced_step(pair.traced.engine.wrapper, whole(pair, run) | inputs, writes, reads)


@torch.no_grad()
def plain(pair: Twins, run: Unrolled) -> StepOutput:
    return pair.plain.step(**whole(pair, run))


def edited_by_hook(pair: Twins, run: Unrolled, name: str, mask: Tensor) -> StepOutput:
    at = slots(name, mask, run)

    def change(value: Tensor) -> Tensor:
        out = value.clone()
        out[at] = other(value[at])
        return out

    with hooked(pair.plain, name, change):
        return plain(pair, run)


def test_every_site_reads_what_a_plain_hook_reads(pair, run):
    mask = some(run)
    with reading(pair.plain, NAMES) as expected:
        bare = plain(pair, run)
    got = traced(pair, run, reads=[Read(site(name, LAYERS), mask) for name in reversed(NAMES)])
    assert torch.equal(got.output.logits, bare.logits) and torch.equal(got.output.hidden, bare.hidden)
    assert list(got.values) == NAMES
    for name in NAMES:
        (value,) = expected[name]
        assert torch.equal(got.values[name], value[slots(name, mask, run)]), name


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_the_same_edit_done_by_a_plain_hook(pair, run, name: str):
    mask, place = some(run), site(name, LAYERS)
    bare = plain(pair, run).logits[run.valid]
    got = traced(pair, run, [Write(place, mask, lambda values, _: other(values))], [Read(place, mask)])
    expected = edited_by_hook(pair, run, name, mask)
    assert torch.equal(got.output.logits[run.valid], expected.logits[run.valid])
    assert not torch.equal(got.output.logits[run.valid], bare)
    nothing = traced(pair, run, [Write(place, mask, lambda values, _: values.clone())])
    assert torch.equal(nothing.output.logits[run.valid], bare)
    with reading(pair.plain, [name]) as before:
        plain(pair, run)
    # The read comes after the write, and holds the new values of exactly the selected positions.
    assert torch.equal(got.values[name], other(before[name][0][slots(name, mask, run)]))


def test_the_residual_stream_adds_up_under_edits_at_each_of_its_sites(pair, run):
    """What a block reads from the stream, and what it goes on with, are the same edited value."""
    mask = run.valid
    names = [f"blocks.1.hook_{part}" for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    for edited in (None, *names[:4]):
        writes = [Write(site(edited, LAYERS), mask, lambda values, _: other(values))] if edited else []
        read = traced(pair, run, writes, [Read(site(name, LAYERS), mask) for name in names]).values
        pre, attention, middle, mlp, post = (read[name] for name in names)
        assert torch.equal(post, middle + mlp), edited
        assert torch.equal(middle, other(pre + attention) if edited == names[2] else pre + attention), edited


def test_edits_at_one_site_apply_in_order_and_see_each_other(pair, run):
    place, mask = site("blocks.1.hook_resid_post", LAYERS), run.valid
    double = Write(place, mask, lambda values, _: values * 2)
    zero = Write(place, mask, lambda values, _: torch.zeros_like(values))
    one = Write(place, mask, lambda values, _: values + 1)
    assert bool((traced(pair, run, [double, zero, one], [Read(place, mask)]).values[place.name] == 1).all())
    assert bool((traced(pair, run, [one, zero, double], [Read(place, mask)]).values[place.name] == 0).all())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("blocks.1.hook_resid_pre", ["blocks.0.hook_resid_post"]),
        ("blocks.1.hook_resid_mid", ["blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"]),
        ("unembed.hook_in", ["blocks.2.hook_resid_post"]),
    ],
)
def test_an_edit_leaves_earlier_tensors_alone(pair, run, name: str, kept: list[str]):
    """Trap: an input changed in place is the previous module's output, too. The tensors are held, not copied."""
    held: dict[str, Tensor] = {}
    handles = []
    for one in kept:
        module, end, _ = module_of(pair.traced.hf, one)
        if end == "output":
            hook = module.register_forward_hook(lambda _, args, out, one=one: held.__setitem__(one, out))
        else:
            hook = module.register_forward_pre_hook(lambda _, args, one=one: held.__setitem__(one, args[0]))
        handles.append(hook)
    reads = [Read(site(one, LAYERS), run.valid) for one in kept]
    got = traced(pair, run, [Write(site(name, LAYERS), run.valid, lambda values, _: other(values))], reads)
    for handle in handles:
        handle.remove()
    with reading(pair.plain, kept) as clean:
        plain(pair, run)
    for one in kept:
        assert torch.equal(held[one], clean[one][0]), one
        assert torch.equal(got.values[one], clean[one][0][run.valid]), one


def test_position_ids_of_three_rows_arrive_whole(pair):
    """Trap: their first axis is 3, as is the number of rows, by which several invokes would slice it."""
    run, _ = plain_run(pair, ITEMS[:3])
    seen = []
    language = pair.traced.hf.model.language_model
    handle = language.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    mask = run.valid
    got = traced(pair, run, [Write(site("blocks.0.hook_resid_pre", LAYERS), mask, lambda values, _: other(values))])
    handle.remove()
    assert seen[0].shape == (3, 3, run.shape[1]) and torch.equal(seen[0], run.position_ids)
    assert not torch.equal(seen[0][0], seen[0][1]), "the axes have to differ for slicing to show"
    expected = edited_by_hook(pair, run, "blocks.0.hook_resid_pre", mask)
    assert torch.equal(got.output.logits[mask], expected.logits[mask])


class Twice(nn.Module):
    """Two modules in a row, run again and again: 1, 10; 11, 110; 111, 1110."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, value: Tensor) -> Tensor:
        for _ in range(3):
            value = self.second(self.first(value + 1) * 10)
        return value


def test_nnsights_own_iteration_slips_which_is_why_a_trace_spans_one_forward():
    """Documents the trap: inside `iter[1]` an access against forward order silently gives step 2."""
    wrapper, start = NNsight(Twice()), torch.zeros(1)
    with wrapper.trace(start) as tracer:
        for _ in tracer.iter[1]:
            second = wrapper.second.output.save()
            first = wrapper.first.output.save()
    assert second.item() == 110, "step 1"
    assert first.item() == 111, "step 2, though step 1 (11) was asked for; if this is 11, nnsight has mended it"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda values, _: values[:1],
            r"returned \(1, 64\) torch.float32 on cpu\n.*needed: \(\d+, 64\) torch.float32 on cpu",
        ),
        (lambda values, _: values[:, :1], r"returned \(\d+, 1\) torch.float32"),
        (lambda values, _: values[0], r"returned \(64,\) torch.float32"),
        (lambda values, _: values.double(), r"returned \(\d+, 64\) torch.float64"),
        (lambda values, _: values.half(), r"returned \(\d+, 64\) torch.float16"),
        (lambda values, _: values.to("meta"), r"returned \(\d+, 64\) torch.float32 on meta"),
        (lambda values, _: None, r"returned a NoneType"),
    ],
)
def test_a_change_of_another_shape_dtype_or_device_is_refused_and_the_model_goes_on(pair, run, change, text: str):
    place = site("blocks.1.hook_resid_pre", LAYERS)
    with pytest.raises(EditError, match=f"a change at blocks.1.hook_resid_pre {text}"):
        traced(pair, run, [Write(place, run.valid, change)])
    assert torch.equal(traced(pair, run).output.logits, plain(pair, run).logits)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_change_leaves_nothing_behind(pair, run, error: type[BaseException]):
    def change(values: Tensor, _: Tensor) -> Tensor:
        raise error

    with pytest.raises(error):
        traced(pair, run, [Write(site("blocks.1.hook_resid_mid", LAYERS), run.valid, change)])
    with torch.no_grad():
        assert torch.equal(pair.traced.hf.step(**whole(pair, run)).logits, plain(pair, run).logits)
    assert torch.equal(traced(pair, run).output.logits, plain(pair, run).logits)


@pytest.mark.parametrize(
    "place",
    [
        site("hook_latent", LAYERS),
        Site("vision.early", "model.visual.merger", "output", (-5, 0)),
        Site("vision.late", "model.visual.merger", "output", (10**9, 0)),
    ],
    ids=lambda place: place.name,
)
@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
def test_a_site_that_is_not_reached_is_an_error_that_names_it(pair, run, place: Site, write: bool):
    writes = [Write(place, run.valid, lambda values, _: values)] if write else []
    reads = [Read(place, run.valid), Read(site("blocks.1.hook_resid_post", LAYERS), run.valid)]
    with pytest.raises(EditError, match=f"^{place.name} did not fire in a forward over "):
        traced(pair, run, writes, reads, latents=None)
    assert torch.equal(traced(pair, run).output.logits, plain(pair, run).logits)


def test_no_rope_offset_is_left_on_the_module(pair, run):
    traced(pair, run, reads=[Read(site("blocks.0.hook_resid_pre", LAYERS), run.valid)])
    assert pair.traced.hf.model.rope_deltas is None
