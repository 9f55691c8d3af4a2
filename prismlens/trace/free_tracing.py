"""`model.trace(mode="free")`: an nnsight trace around the latent loop, with latent k by number; knows no edits."""

from __future__ import annotations

import warnings
from operator import index
from typing import Any

from jaxtyping import Float
from nnsight import NNsight
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor, nn

from prismlens.errors import EditError
from prismlens.models.loop import LoopSettings
from prismlens.sites import Site
from prismlens.trace.acts import fitting
from prismlens.trace.batch import Engine, run_batch
from prismlens.trace.editing import BatchEdits
from prismlens.trace.run import Run
from prismlens.trace.turn import lent, turn
from prismlens.types import Item
from prismlens.unrolled import Unrolled


class LatentSteps:
    """``tracer.latent[k]``: the vector that is fed back at latent step k, ``[batch, d_model]``, to read or to assign.

    nnsight counts the calls of `hook_latent`, and a loop makes one call a latent step. Each access names its own call
    anew, so that none can slip to a later step; a step that is over, or that never comes, is an error.
    """

    def __init__(self, tracer: Any, wrapper: NNsight) -> None:
        self._tracer, self._wrapper = tracer, wrapper
        self._asked: list[int] = []
        self._reached: list[int] = []

    def __getitem__(self, step: int) -> Float[Tensor, "batch d_model"]:
        """The vectors, as every change so far has left them."""
        return self._at(step)[:, 0]

    def __setitem__(self, step: int, new: object) -> None:
        """Feed these instead.

        Raises:
            EditError: another shape or dtype than the vectors'.
        """
        site = self._tracer.site
        vectors = fitting(site, new, self._at(step)[:, 0])
        for _ in self._tracer.iter[step]:
            self._wrapper.hook_latent.output = vectors[:, None]

    def _at(self, step: int) -> Tensor:
        number = index(step)
        if number < 0 or (self._asked and number < self._asked[-1]):
            raise EditError(
                f"tracer.latent[{number}]" + (f" after tracer.latent[{self._asked[-1]}]" if self._asked else ""),
                needed="steps counted from 0, in the order in which they are run",
                cause="the loop is under way, and what is over cannot be read or changed"
                if number >= 0
                else "how many steps there will be is not known while the loop runs",
            )
        self._asked.append(number)
        value: Any = None
        for _ in self._tracer.iter[number]:
            value = self._wrapper.hook_latent.output
            self._reached.append(number)
        return value

    def check(self, run: Unrolled | None) -> None:
        """Raise EditError where a step never came, or was not the same step of every item."""
        missed = sorted(set(self._asked) - set(self._reached))
        if missed:
            taken = [] if run is None else (run.steps.amax(1) + 1).tolist()
            raise EditError(
                f"tracer.latent[{missed[0]}] was never reached",
                needed=f"a step that the items take; they took {', '.join(map(str, taken)) or 'none'}",
                cause="the budget is smaller, the model did not enter latent mode, or it left it earlier",
            )
        if run is None:
            return
        calls = (run.steps >= 0).any(0).nonzero().flatten().tolist()
        for number in self._reached:
            if bool((run.steps[:, calls[number]] != number).any()):
                raise EditError(
                    f"tracer.latent[{number}] was not latent {number} of every item",
                    needed="items that enter latent mode at the same time",
                    cause="in this batch some items came to their latents later than others",
                    fix="trace one item at a time, or use trace(mode='held') with model.at(latent[k])",
                )


class FreeTracer(InterleavingTracer):
    """nnsight's tracer around the latent loop; ``tracer.latent`` while it runs, ``tracer.run`` afterwards."""

    latent: LatentSteps
    model: nn.Module
    site: Site
    run: Run | None = None

    def __exit__(self, *exc: Any) -> bool:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was never reached.*", UserWarning)  # `check` makes it an error
            with turn(self.model, "the block of a trace", forward=True):
                handled = super().__exit__(*exc)
        self.latent.check(None if self.run is None else self.run.unrolled)
        return handled


def open_free_trace(engine: Engine, items: list[Item], settings: LoopSettings, edits: BatchEdits) -> FreeTracer:
    """A tracer over a free run of the items in one batch.

    Args:
        engine: what runs.
        items: of the batch.
        settings: of the loop.
        edits: structural ones alone.
    """

    def loop(items: list[Item]) -> Run:
        with lent(engine.hf):
            tracer.run = run_batch(engine, engine.processor(items), settings, edits, None)
        return tracer.run

    wrapper: Any = engine.wrapper
    tracer: Any = wrapper.trace(fn=loop, tracer_cls=FreeTracer, items=items)
    tracer.model = engine.hf
    tracer.site, tracer.latent = engine.site("hook_latent"), LatentSteps(tracer, engine.wrapper)
    return tracer
