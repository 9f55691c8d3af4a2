"""What edits need before a run: donors, targets, and clean values of their sites; runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.interventions import Edit, Mean, Noise, Steer, Swap, match_donors
from prismlens.interventions.placed import Placed
from prismlens.positions import Role
from prismlens.sites import expand
from prismlens.trace.editing import BatchEdits
from prismlens.trace.known import Known, Where
from prismlens.trace.reference import Statistics
from prismlens.trace.run import Run
from prismlens.types import Item

MEASURED = {"mean", "std", "spread", "donors"}
"""What operations may need that is read off clean runs."""


def measures(edit: Edit) -> bool:
    """Whether an edit takes anything from a clean run."""
    return bool(edit.op.needs & MEASURED)


def needs_reference(edits: Sequence[Edit]) -> bool:
    """Whether a clean run has to be there before these edits can act."""
    return any(measures(edit) or edit.mode == "held" for edit in edits)


def prepared(
    edits: tuple[Edit, ...],
    items: Sequence[Item],
    n_layers: int,
    n_heads: int,
    *,
    opens: tuple[int, ...],
    reference: Run | None,
    read: Callable[[list[str], Role, Run], ActivationCache],
    targets: Callable[[], Float[Tensor, "item step d_model"]],
) -> BatchEdits:
    """Donors, targets, and clean values of the sites that the edits need, measured over the whole reference.

    Args:
        edits: in the order in which they apply.
        items: that are to run.
        n_layers: of the model.
        n_heads: query heads of a layer.
        opens: ids that open a stage of latents.
        reference: a clean run that holds the items; None where no edit needs one.
        read: activations of a clean run: ``(names, positions, run) -> cache``.
        targets: the image features of the items' latents; called where an edit needs them.

    Raises:
        DonorError: an edit swaps, and an item has no possible donor.
    """
    clean: dict[Where, Placed] = {}
    statistics: dict[Where, Statistics] = {}
    donors: dict[Edit, dict[str, str]] = {}
    for edit in edits:
        if reference is None or not measures(edit):
            continue
        if isinstance(edit.op, Swap):
            donors[edit] = match_donors(items, edit.op, seed=edit.seed, pool=reference.items)
        names = [one.name for one in expand(edit.site, n_layers)]
        cache = read(names, edit.positions, reference)
        for name in names:
            placed = Placed.of(cache, name)
            if "donors" in edit.op.needs:
                clean[edit, name] = placed
            else:
                statistics[edit, name] = _statistics(edit, placed)
    own: dict[str, Tensor] = {}
    if any("targets" in edit.op.needs for edit in edits):
        own = {item.id: features for item, features in zip(items, targets(), strict=True)}
    return BatchEdits(edits, n_layers, n_heads, Known(clean, statistics, donors, own), opens)


def _statistics(edit: Edit, clean: Placed) -> Statistics:
    """The statistics that an edit's operation asks for; an operation of one's own gets those of a stage."""
    over = edit.op.over if isinstance(edit.op, Mean | Noise) else None
    along = edit.op.along if isinstance(edit.op, Steer) else None
    return Statistics.of(clean, over or "stage", along)
