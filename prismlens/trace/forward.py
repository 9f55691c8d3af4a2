"""One nnsight trace around one forward: reads sites, changes them, and keeps account of what fired; knows no items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool
from nnsight import NNsight
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from prismlens.errors import EditError
from prismlens.models.hooked_attention import attention_hooked
from prismlens.models.latent import StepOutput
from prismlens.sites import LOGITS, Site
from prismlens.trace.acts import Act, Backward, Call, Change, Read, Write, called, in_named_axes, slots, written
from prismlens.trace.taps import Taps
from prismlens.trace.turn import turn

__all__ = ["Backward", "Call", "Change", "Pixels", "Read", "Traced", "Write", "traced_step"]

Visit = tuple[Site, list[Act], list[Backward], Read | None]
"""A site with what to do there: changes in order, then what concerns gradients, then perhaps a read."""
Pixels = tuple[Tensor, Tensor]
"""Pixel values and grids of all images: with them the vision tower runs inside the trace."""


@dataclass(eq=False)
class Traced:
    """What one traced forward gave.

    Args:
        output: of the forward; all of its fields are empty where the forward was stopped.
        values: ``[n, ...]`` by site name.
        roots: by site name the whole value that the output was computed from, where a gradient was asked for.
    """

    output: StepOutput
    values: dict[str, Tensor] = field(default_factory=dict)
    roots: dict[str, Tensor] = field(default_factory=dict)


def traced_step(
    wrapper: NNsight,
    inputs: Mapping[str, Any],
    writes: Sequence[Act],
    reads: Sequence[Read],
    *,
    backwards: Sequence[Backward] = (),
    pixels: Pixels | None = None,
    stop_at: Site | None = None,
) -> Traced:
    """Run ``model.step(**inputs)`` once inside one trace.

    A trace spans exactly one forward, so a site is reached exactly once and no access can bind to another step.
    Sites are visited in forward order; at one site all changes come, in the given order, before the read.

    Args:
        wrapper: of the model.
        inputs: of `step`. Logits are computed at every column where a site is the logits.
        writes: changes, and functions to call.
        reads: what to keep.
        backwards: functions for gradients.
        pixels: run the vision tower on these inside the trace, in place of ``inputs["image_features"]``.
        stop_at: the forward ends where it reaches this input.

    Raises:
        EditError: a change returned another shape or dtype, or a site was not reached.
    """
    plan = _plan(writes, reads, backwards)
    if any(site.name == LOGITS for site, *_ in plan):
        inputs = {**inputs, "keep": slice(None)}
    traced = Traced(_nothing(wrapper, inputs))
    fired: list[str] = []
    cause: Exception | None = None
    finished = False
    eager = any(site.eager for site, *_ in plan)
    root: Any = wrapper._module
    try:
        with turn(root, "a traced forward", forward=True), attention_hooked(root.decoder, eager):
            finished = _in_one_trace(wrapper, inputs, plan, traced, fired, pixels, stop_at)
    except OutOfOrderError as error:
        cause = error
    missed = [site.name for site, *_ in plan if site.name not in fired]
    if missed or not finished:
        raise EditError(
            f"{missed[0] if missed else 'the output'} did not fire in a forward over {tuple(_shape(inputs))} columns",
            needed="every site that was asked for to be reached, in forward order",
            cause="the forward has no latent columns, or the model does not use that module",
        ) from cause
    return traced


def _in_one_trace(
    wrapper: NNsight,
    inputs: Mapping[str, Any],
    plan: Sequence[Visit],
    traced: Traced,
    fired: list[str],
    pixels: Pixels | None,
    stop_at: Site | None,
) -> bool:
    """The forward itself: fills in what it gave and the names of the sites reached; whether it came to its end."""
    index = inputs.get("latent_index")
    taps = Taps(wrapper, None if pixels is None else pixels[1])
    last = {visit[0].path: number for number, visit in enumerate(plan)}
    if stop_at is not None:
        last[stop_at.path] = len(plan)
    ended = []
    with wrapper.trace(
        fn="step" if pixels is None else seeing(wrapper, pixels), **_without_features(inputs, pixels)
    ) as opened:
        for number, visit in enumerate(plan):
            _visit(taps, visit, traced, index)
            fired.append(visit[0].name)
            if last[visit[0].path] == number:
                taps.forget(visit[0].path)
        if stop_at is not None:
            taps.value(stop_at)
            ended.append(True)
            cast(Any, opened).stop()
        traced.output = cast(Any, opened).result
        ended.append(True)
    return bool(ended)


def _visit(taps: Taps, visit: Visit, traced: Traced, index: object) -> None:
    """Do at one site what is to be done there."""
    site, acts, backwards, read = visit
    value = taps.value(site)
    for act in acts:
        new = written(value, act, index) if isinstance(act, Write) else called(value, act, index)
        if new is not None:
            taps.write(site, value, new)
            value = new
    if backwards or (read is not None and read.gradient):
        value = taps.in_graph(site)
        for backward in backwards:
            value.register_hook(in_named_axes(site, backward))
        traced.roots[site.name] = value
    if read is not None:
        kept = value.detach() if read.gradient else value
        traced.values[site.name] = kept.clone() if site.vision else _at(slots(site, read.mask, value, index), kept)
        if read.heads is not None and site.view == "queries":
            traced.values[site.name] = traced.values[site.name][:, list(read.heads)]


def _at(mask: Bool[Tensor, "batch query"], value: Tensor) -> Tensor:
    """``value[mask]``, which takes twice as long."""
    if not value.is_contiguous():
        return value[mask]
    return value.flatten(0, 1).index_select(0, mask.flatten().nonzero().squeeze(1))


def seeing(wrapper: NNsight, pixels: Pixels) -> Callable[..., StepOutput]:
    """The vision tower on these pixels, and then `step`."""
    model: Any = wrapper._module

    def see_and_step(**inputs: Any) -> StepOutput:
        return model.step(**model.vision_inputs(*pixels), **inputs)

    return see_and_step


def _without_features(inputs: Mapping[str, Any], pixels: Pixels | None) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if pixels is None or name != "image_features"}


def _plan(writes: Sequence[Act], reads: Sequence[Read], backwards: Sequence[Backward]) -> list[Visit]:
    """Sites in forward order, each with its changes, functions for gradients, and read."""
    sites = {one.site.name: one.site for one in (*writes, *reads, *backwards)}
    by_read = {read.site.name: read for read in reads}
    acts: dict[str, list[Act]] = {name: [] for name in sites}
    watching: dict[str, list[Backward]] = {name: [] for name in sites}
    for write in writes:
        acts[write.site.name].append(write)
    for backward in backwards:
        watching[backward.site.name].append(backward)
    ordered = sorted(sites.values(), key=lambda site: site.order)
    return [(site, acts[site.name], watching[site.name], by_read.get(site.name)) for site in ordered]


def _nothing(wrapper: NNsight, inputs: Mapping[str, Any]) -> StepOutput:
    """An output without columns."""
    model: Any = wrapper._module
    hidden = torch.zeros(len(inputs["input_ids"]), 0, model.config.text.hidden_size, dtype=model.dtype)
    return StepOutput(hidden, hidden[..., :0], hidden)


def _shape(inputs: Mapping[str, object]) -> torch.Size:
    ids = inputs["input_ids"]
    assert isinstance(ids, Tensor)
    return ids.shape
