"""Gradients of a number that the user computes from logits, at the sites of one replay; knows no items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from prismlens.errors import EditError
from prismlens.positions import Positions
from prismlens.trace.acts import Read, slots
from prismlens.trace.forward import Traced

Metric: TypeAlias = Callable[[Tensor], Tensor]
"""From logits to one number an item, ``[batch]``. The logits are those at the selected positions of one batch:
``[batch, pos, d_vocab]`` where every item has equally many, else ``[n, d_vocab]``. A single number, ``[]``, will do
where all items are in one batch."""


def gradients(
    metric: Metric, logits: Tensor, where: Positions, traced: Traced, reads: Sequence[Read], index: object
) -> dict[str, Tensor]:
    """The metric's gradient at each site that was read, under the site's name and ``_grad``; in the shape of the value.

    Each item's number is differentiated with respect to its own activations, so the items beside it do not matter.

    Args:
        metric: see `Metric`.
        logits: ``[n, d_vocab]``, with their graph.
        where: their positions.
        traced: holds the values that the logits were computed from.
        reads: what was asked for.
        index: for every column the index of its latent, -1 elsewhere.

    Raises:
        EditError: the metric gives back something else, or a number that does not depend on the logits.
    """
    batch = len(reads[0].mask) if reads else int(where.rows.max()) + 1
    counts = where.rows.bincount(minlength=batch)
    regular = bool((counts == counts[0]).all())
    number = metric(logits.unflatten(0, (batch, int(counts[0]))) if regular else logits)
    if not isinstance(number, Tensor) or number.shape not in ((), (batch,)) or not number.requires_grad:
        given = f"{tuple(number.shape)}" if isinstance(number, Tensor) else f"a {type(number).__name__}"
        raise EditError(
            f"the metric gave {given} for {batch} items",
            needed=f"a tensor of shape ({batch},), one number an item, that depends on the logits",
            cause="a detached tensor" if isinstance(number, Tensor) and not number.requires_grad else "",
        )
    roots = list(traced.roots.values())
    found = torch.autograd.grad(number.sum(), roots, materialize_grads=True) if roots else ()
    by_name = dict(zip(traced.roots, found, strict=True))
    return {
        f"{read.site.name}_grad": by_name[read.site.name]
        if read.site.vision
        else by_name[read.site.name][slots(read.site, read.mask, by_name[read.site.name], index)]
        for read in reads
    }
