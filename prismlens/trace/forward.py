"""One nnsight trace around one forward: reads sites, changes them, and keeps account of what fired; knows no items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
from jaxtyping import Bool
from nnsight import NNsight
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from prismlens.errors import EditError
from prismlens.models.lvr import StepOutput
from prismlens.sites import LATENT, Site

Change = Callable[[Tensor, Bool[Tensor, "batch query"]], Tensor]
"""New values of the selected positions: ``(values [n, d], mask of the forward's columns) -> [n, d]``."""


@dataclass(frozen=True, eq=False)
class Write:
    """A change to make at a site, where the mask of this forward's columns is True."""

    site: Site
    mask: Bool[Tensor, "batch query"]
    change: Change


@dataclass(frozen=True, eq=False)
class Read:
    """Values to keep from a site, where the mask of this forward's columns is True."""

    site: Site
    mask: Bool[Tensor, "batch query"]


Visit = tuple[Site, list[Write], Read | None]
"""A site with what to do there: changes in order, then perhaps a read."""


@dataclass(eq=False)
class Traced:
    """What one traced forward gave: its output, and the values read, ``[n, d]`` by site name."""

    output: StepOutput
    values: dict[str, Tensor] = field(default_factory=dict)


def traced_step(wrapper: NNsight, inputs: Mapping[str, Any], writes: Sequence[Write], reads: Sequence[Read]) -> Traced:
    """Run ``model.step(**inputs)`` once inside one trace.

    A trace spans exactly one forward, so a site is reached exactly once and no access can bind to another step.
    Sites are visited in forward order; at one site all writes come, in the given order, before the read.

    Raises:
        EditError: a change returned another shape or dtype, or a site was not reached.
    """
    plan = _plan(writes, reads)
    values: dict[str, Tensor] = {}
    fired: list[str] = []
    cause: Exception | None = None
    output: StepOutput | None = None
    try:
        output = _in_one_trace(wrapper, inputs, plan, values, fired)
    except OutOfOrderError as error:
        cause = error
    missed = [site.name for site, _, _ in plan if site.name not in fired]
    if missed or output is None:
        raise EditError(
            f"{missed[0] if missed else 'the output'} did not fire in a forward over {tuple(_shape(inputs))} columns",
            needed="every site that was asked for to be reached, in forward order",
            cause="the forward has no latent columns, or the model does not use that module",
        ) from cause
    return Traced(output, values)


def _in_one_trace(
    wrapper: NNsight, inputs: Mapping[str, Any], plan: Sequence[Visit], values: dict[str, Tensor], fired: list[str]
) -> StepOutput:
    """The traced forward itself: fills in the values read and the names of the sites reached."""
    index = inputs.get("latent_index")
    with wrapper.trace(fn="step", **inputs) as opened:
        for site, site_writes, read in plan:
            module = attrgetter(site.path)(wrapper)
            value = module.output if site.end == "output" else module.input
            fired.append(site.name)
            for write in site_writes:
                value = _changed(value, write, index)
            if site_writes and site.end == "output":
                module.output = value
            if site_writes and site.end == "input":
                module.input = value
            if read is not None:
                values[site.name] = value[_slots(site, read.mask, value, index)]
        output = cast(Any, opened).result.save()
    return output


def _plan(writes: Sequence[Write], reads: Sequence[Read]) -> list[Visit]:
    """Sites in forward order, each with its writes and its read."""
    sites = {one.site.name: one.site for one in (*writes, *reads)}
    by_read = {read.site.name: read for read in reads}
    return [
        (site, [write for write in writes if write.site.name == site.name], by_read.get(site.name))
        for site in sorted(sites.values(), key=lambda site: site.order)
    ]


def _changed(value: Tensor, write: Write, index: object) -> Tensor:
    """`value` with the selected rows replaced.

    The tensor itself is left alone (it may be another layer's output), except at a shared site: there it is the only
    thing that the module and the layer around it have in common.
    """
    at = _slots(write.site, write.mask, value, index)
    old = value[at]
    new = write.change(old, write.mask)
    if not isinstance(new, Tensor) or new.shape != old.shape or new.dtype != old.dtype:
        given = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else f"a {type(new).__name__}"
        raise EditError(
            f"a change at {write.site.name} returned {given}",
            needed=f"{tuple(old.shape)} {old.dtype}, as it was given",
        )
    out = value if write.site.end == "shared" else value.clone()
    out[at] = new
    return out


def _slots(site: Site, mask: Bool[Tensor, "batch query"], value: Tensor, index: object) -> Bool[Tensor, "batch column"]:
    """The mask over the value's own second axis: columns everywhere, but latent slots at the latent site."""
    if site.name != LATENT:
        return mask
    assert isinstance(index, Tensor)
    out = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
    rows, columns = (mask & (index >= 0)).nonzero(as_tuple=True)
    out[rows, index[rows, columns]] = True
    return out


def _shape(inputs: Mapping[str, object]) -> torch.Size:
    ids = inputs["input_ids"]
    assert isinstance(ids, Tensor)
    return ids.shape
