"""Whether edits can apply to a model, before anything runs; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from prismlens.errors import EditError, SiteError
from prismlens.interventions import Cut, Edit, Patch
from prismlens.models.latent import LatentModel
from prismlens.sites import expand, refuse_headless


def check_edits(edits: Sequence[Edit], hf: LatentModel) -> None:
    """Refuse edits that name what the model lacks.

    Raises:
        SiteError: an unknown site, or a layer or head beyond the model's.
        EditError: the edits' modes differ, or a `Patch` has lost its source, or has it from another site.
    """
    for edit in edits:
        hf.refuse_site(edit.site)
        sites = expand(edit.site, hf.n_layers)
        refuse_headless(edit.site, head=hf.has_head)
        if isinstance(edit.op, Cut):
            _within(edit, "layer", edit.op.layers, hf.n_layers)
            _within(edit, "head", edit.op.heads, hf.config.text.num_attention_heads)
        if isinstance(edit.op, Patch):
            for site in sites:
                edit.op.source.at(site.name)
    one_mode(edits)


def one_mode(edits: Sequence[Edit]) -> None:
    """Raise EditError where free and held edits stand together."""
    modes = sorted({edit.mode for edit in edits})
    if len(modes) > 1:
        raise EditError(f"edits of the modes {' and '.join(modes)} together", needed="one mode for all edits")


def _within(edit: Edit, what: str, numbers: Sequence[int] | None, count: int) -> None:
    beyond = [number for number in numbers or () if number >= count]
    if beyond:
        raise SiteError(f"{edit} names {what} {beyond[0]}", needed=f"{what}s from 0 to {count - 1}")
