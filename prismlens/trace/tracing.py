"""`model.trace`: a plain nnsight trace over one replay of finished sequences, with hook names; knows no edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnsight.intervention.tracer import InterleavingTracer
from torch import nn

from prismlens.models.hooked_attention import Switch
from prismlens.models.loop import replay_inputs
from prismlens.sites import site_names
from prismlens.trace.batch import Engine
from prismlens.trace.forward import seeing
from prismlens.trace.named import OpenTrace
from prismlens.trace.taps import Taps
from prismlens.trace.turn import turn
from prismlens.unrolled import Unrolled


class NamedTracer(InterleavingTracer):
    """nnsight's tracer; while its block runs, hook names lead to the forward's values, and afterwards all is as before.

    ``tracer.run`` are the sequences that the forward runs: ``tracer.run.steps`` says where the latents are.
    """

    run: Unrolled
    opened: OpenTrace
    switch: Switch
    model: nn.Module
    publish: Callable[[OpenTrace | None], None]

    def __exit__(self, *exc: Any) -> bool:
        self.publish(self.opened)
        try:
            with turn(self.model, "the block of a trace", forward=True):
                handled = super().__exit__(*exc)
            self.opened.check()
            return handled
        finally:
            self.publish(None)
            self.switch.restore()


def open_trace(
    engine: Engine, run: Unrolled, publish: Callable[[OpenTrace | None], None], rules: Any, backend: Any = None
) -> NamedTracer:
    """A tracer over one forward of whole sequences, the vision tower included; logits at every position.

    Args:
        engine: what runs.
        run: the sequences.
        publish: is given the open trace when the block starts to run, and None when it has ended.
        rules: visibility rules on top of the model's own.
        backend: nnsight's, which runs the block; its own by default.
    """
    pixels = engine.pixels(engine.processor(run.items))
    inputs: dict[str, Any] = replay_inputs(engine.hf, run, rules)
    tracer: Any = engine.wrapper.trace(fn=seeing(engine.wrapper, pixels), tracer_cls=NamedTracer, **inputs)
    names = site_names(
        engine.hf.n_layers, head=engine.hf.has_head, n_vision_layers=engine.hf.n_vision_layers, every=True
    )
    if backend is not None:
        tracer.backend = backend
    tracer.run, tracer.publish = run, publish
    tracer.model, tracer.switch = engine.hf, Switch(engine.hf.decoder)
    taps = Taps(engine.wrapper, pixels[1], tracer.switch)
    tracer.opened = OpenTrace(taps, {name: engine.site(name) for name in names}, run)
    return tracer
