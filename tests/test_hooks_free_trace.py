"""A trace of a free run: latent k by number, read and written while the loop runs; and one run of a model at a time."""

# ruff: noqa: SIM117  (nnsight takes the block of the `with` that opens the trace, so that one stands alone)

import threading

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import EditError, SettingError
from prismlens.models.lvr import StepOutput
from prismlens.trace import PrismModel
from tests.plain_hooks import STEPS, Twins, hooked, plain_run, twins

ITEMS = shapes(3, seed=3)


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture(scope="module")
def model(pair: Twins) -> PrismModel:
    return pair.traced


@pytest.fixture(scope="module")
def run(model):
    return model.generate(ITEMS)


def test_every_step_is_that_step(model, run):
    seen: list[Tensor] = []
    with model.trace(ITEMS, mode="free") as tracer:
        for step in range(STEPS):
            seen.append(tracer.latent[step])
    assert torch.equal(torch.stack(seen, 1), run.latents)
    assert tracer.run.text == run.text and torch.equal(tracer.run.latents, run.latents)
    with model.trace(ITEMS, mode="free") as tracer:
        last = tracer.latent[STEPS - 1].save()
    assert torch.equal(last, run.latents[:, -1])


def test_what_is_assigned_is_fed_and_changes_what_comes_after(pair, model, run):
    with model.trace(ITEMS, mode="free") as tracer:
        tracer.latent[1] = tracer.latent[1] * 2
        again = tracer.latent[1].save()
        after = tracer.latent[2].save()
    calls = []

    def doubled(value: Tensor) -> Tensor | None:
        calls.append(0)
        return value * 2 if len(calls) == 2 else None

    with hooked(pair.plain, "hook_latent", doubled):
        expected = plain_run(pair, ITEMS)[0]
    assert torch.equal(again, run.latents[:, 1] * 2)
    assert torch.equal(after, expected.latents[:, 2]) and not torch.equal(after, run.latents[:, 2])
    assert torch.equal(tracer.run.unrolled.input_ids, expected.input_ids)


def test_a_step_that_is_over_or_never_comes_is_an_error(model):
    with pytest.raises(EditError, match=r"latent\[1\] after tracer.latent\[2\][\s\S]*in the order"):
        with model.trace(ITEMS, mode="free") as tracer:
            tracer.latent[2]
            tracer.latent[1] = torch.zeros(3, 64)
    with pytest.raises(EditError, match=rf"latent\[{STEPS}\] was never reached[\s\S]*{STEPS}, {STEPS}, {STEPS}"):
        with model.trace(ITEMS, mode="free") as tracer:
            value = tracer.latent[STEPS]
    with pytest.raises(EditError, match=r"latent\[-1\][\s\S]*not known"):
        with model.trace(ITEMS, mode="free") as tracer:
            value = tracer.latent[-1]  # noqa: F841
    with pytest.raises(EditError, match=r"hook_latent returned \(1,\)"):
        with model.trace(ITEMS, mode="free") as tracer:
            tracer.latent[0] = torch.zeros(1)
    with pytest.raises(SettingError, match="mode = 'loose'"):
        model.trace(ITEMS, mode="loose")


def test_items_that_come_to_their_latents_at_different_times_are_refused(pair):
    model = twins(latent_exit="fixed").traced
    model.processor.start = False  # the model has to write the marker itself
    model.max_new_tokens = 4
    start, own = model.hf.config.lvr_start_id, model.hf.step
    forwards = []

    def step(**inputs: object) -> StepOutput:
        out = own(**inputs)
        forwards.append(0)
        row = len(forwards) - 1
        if row < 2:
            out.logits[row, -1, start] = 99.0
        return out

    model.hf.step = step
    with pytest.raises(EditError, match=r"latent\[1\] was not latent 1 of every item"):
        with model.trace(ITEMS[:2], mode="free") as tracer:
            value = tracer.latent[1]  # noqa: F841


@pytest.mark.parametrize("mode", ["held", "free"])
def test_nothing_else_starts_inside_a_trace_or_a_hook(model, run, mode: str):
    for start in (
        lambda: model.generate(ITEMS),
        lambda: model.trace(ITEMS, mode=mode),
        lambda: model.run_with_cache(ITEMS, "resid_post", run=run),
    ):
        with pytest.raises(EditError, match=r"inside (the block of a trace|a run) of the same model"):
            with model.trace(ITEMS, mode=mode):
                start()
    with pytest.raises(EditError, match=r"a run inside a traced forward"):
        model.run_with_hooks(ITEMS, [("hook_embed", lambda value, hook: model.generate(ITEMS) and None)])
    assert torch.equal(model.generate(ITEMS).latents, run.latents), "and the model goes on"


def test_a_second_thread_is_refused_and_the_first_one_goes_on(model, run):
    entered, refused, found = threading.Event(), threading.Event(), []

    def wait(value: Tensor, *, hook) -> None:
        entered.set()
        assert refused.wait(60)

    def first() -> None:
        found.append(model.run_with_hooks(ITEMS, [("hook_latent", wait)], return_type="run"))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert entered.wait(60)
        with pytest.raises(EditError, match="while another thread is in a traced forward of the same model"):
            model.generate(ITEMS)
    finally:
        refused.set()
        thread.join()
    assert torch.equal(found[0].latents, run.latents)
    assert torch.equal(model.generate(ITEMS).latents, run.latents)
