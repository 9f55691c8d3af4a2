"""Attribution patching: what a patch would do, to first order, from one backward pass; patches nothing.

The metric's gradient at the receiving run, times (donor - receiver): Nanda 2023, "Attribution patching"; Syed et al.
2023, arXiv:2310.10348. Exact where the metric is linear in the site; elsewhere compare it with the patch itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prismlens.errors import SettingError
from prismlens.patching.cells import Cell
from prismlens.patching.metric import Measure
from prismlens.patching.places import Places
from prismlens.patching.states import States, dense, entry, step_inputs
from prismlens.sites import LATENT, site
from prismlens.trace.batch import Engine
from prismlens.trace.forward import Write, traced_step


def attributed(
    engine: Engine,
    receiver: States,
    donor: States,
    places: Places,
    cells: Sequence[Cell],
    measure: Measure,
    source: Int[Tensor, " pair"],
) -> Float[Tensor, "cell pair"]:
    """The change of the metric that each cell's patch makes, to first order; 0 where a pair lacks the place.

    Raises:
        SettingError: the metric has no gradient.
    """
    names = list(dict.fromkeys(cell.name for cell in cells))
    slopes = gradients(engine, receiver, names, measure, source)
    effects = {name: _by_head(slopes[name] * (donor.values[name] - receiver.values[name])) for name in names}
    out = []
    for cell in cells:
        effect = effects[cell.name]
        effect = effect.sum(2) if cell.head is None else effect[:, :, cell.head]
        out.append((effect * places.masks[cell.place]).sum(1))
    return torch.stack(out)


def gradients(
    engine: Engine, receiver: States, names: Sequence[str], measure: Measure, source: Int[Tensor, " pair"]
) -> Mapping[str, Float[Tensor, "pair pos *rest"]]:
    """The metric's gradient at every position of the named sites."""
    mask = receiver.run.valid[:, : receiver.width]
    with torch.no_grad():
        inputs = step_inputs(engine, receiver.run, receiver.width)
    shifts: dict[str, Tensor] = {}
    writes: list[Write] = []
    for name in names:
        at = mask & (receiver.run.steps[:, : receiver.width] >= 0) if name == LATENT else mask
        # In a replay the vector that is fed is what enters the first layer.
        real = entry(0) if name == LATENT else name
        shifts[name] = torch.zeros_like(receiver.values[name][at]).requires_grad_()
        writes.append(Write(site(real, engine.hf.n_layers), at, _shifted(shifts[name])))
    with torch.enable_grad():
        hidden = traced_step(engine.wrapper, inputs, writes, []).output.hidden
        rows = torch.arange(len(source), device=source.device)
        value = measure(engine.hf.lm_head(hidden[rows, source]), range(len(source))).sum()
        if not value.requires_grad:
            raise SettingError(
                "a metric without a gradient", needed="a differentiable metric", fix='use method="exact"'
            )
        slopes = torch.autograd.grad(value, list(shifts.values()))
    return {
        name: dense(slope, mask & (receiver.run.steps[:, : receiver.width] >= 0) if name == LATENT else mask)
        for name, slope in zip(names, slopes, strict=True)
    }


def _shifted(shift: Tensor):
    """A change that adds zeros, through which the gradient is taken."""

    def change(values: Tensor, selected: Bool[Tensor, "pair pos"]) -> Tensor:
        return values + shift.reshape(values.shape)

    return change


def _by_head(effect: Float[Tensor, "pair pos *rest"]) -> Float[Tensor, "pair pos head"]:
    """Summed over all axes but that of heads; the one axis of a site without heads is kept."""
    return effect.flatten(3).sum(3) if effect.ndim > 3 else effect
