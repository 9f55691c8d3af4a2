"""What edits need before a run: donors, targets, and clean values of their sites; runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.interventions import Edit, Swap, match_donors
from prismlens.positions import Role
from prismlens.sites import expand
from prismlens.trace.editing import BatchEdits
from prismlens.trace.reference import Reference
from prismlens.trace.run import Run
from prismlens.types import Item


def needs_reference(edits: Sequence[Edit]) -> bool:
    """Whether a clean run has to be there before these edits can act."""
    return any(edit.op.needs - {"targets"} or edit.mode == "held" for edit in edits)


def prepared(
    edits: tuple[Edit, ...],
    items: Sequence[Item],
    n_layers: int,
    *,
    reference: Run | None,
    read: Callable[[list[str], Role, Run], ActivationCache],
    targets: Callable[[], Float[Tensor, "item step d_model"]],
) -> BatchEdits:
    """Donors, targets, and clean values of the sites that the edits need, measured over the whole reference.

    Args:
        edits: in the order in which they apply.
        items: that are to run.
        n_layers: of the model.
        reference: a clean run that holds the items; None where no edit needs one.
        read: activations of a clean run: ``(names, positions, run) -> cache``.
        targets: the image features of the items' latents; called where an edit needs them.

    Raises:
        DonorError: an edit swaps, and an item has no possible donor.
    """
    references: dict[tuple[Edit, str], Reference] = {}
    donors: dict[Edit, dict[str, str]] = {}
    for edit in edits:
        if reference is None or not edit.op.needs - {"targets"}:
            continue
        if isinstance(edit.op, Swap):
            donors[edit] = match_donors(items, edit.op, seed=edit.seed, pool=reference.items)
        names = [one.name for one in expand(edit.site, n_layers)]
        cache = read(names, edit.positions, reference)
        references |= {(edit, name): Reference.of(cache, name) for name in names}
    own: dict[str, Tensor] = {}
    if any("targets" in edit.op.needs for edit in edits):
        own = {item.id: features for item, features in zip(items, targets(), strict=True)}
    return BatchEdits(edits, n_layers, references, donors, own)
