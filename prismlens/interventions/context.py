"""What an operation may know besides the value it changes; knows no operation and no model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from prismlens.errors import EditError

OVER = ("step", "stage", "all")
"""What a mean or a spread is taken over. ``"step"``: the items' values at one latent step. ``"stage"``: at all steps of
one stage. ``"all"``: at every selected position. Positions that are not latents have no step: under ``"step"`` and
``"stage"`` they are one group together."""


@dataclass(frozen=True, eq=False)
class Context:
    """Facts about the n selected (item, position) pairs, in the order of the value's rows.

    Args:
        item_ids: id of the item of each pair.
        steps: latent step of each pair, -1 outside latents.
        std: standard deviation of each dimension at this site, measured on clean runs: one for all pairs, or each
            pair's own (that of its step or stage).
        mean: mean of each dimension, likewise.
        spread: standard deviation along the operation's direction, for each pair.
        donors: the clean value of another item or place that each pair may get.
        source: the value of another run that each pair may get.
        targets: the image feature that the latent of each pair stands for.
        seed: of the edit.
        offsets: how many positions of its own row come before each pair's, padding not counted. Noise needs them to
            tell positions apart that have no latent step; nothing else reads them.
        site: the hook name, so that noise differs from site to site.

    Raises:
        EditError: the lengths disagree.
    """

    item_ids: tuple[str, ...]
    steps: Int[Tensor, " n"]
    std: Float[Tensor, "*n d"] | None = None
    mean: Float[Tensor, "*n d"] | None = None
    spread: Float[Tensor, " n"] | None = None
    donors: Float[Tensor, "n d"] | None = None
    source: Float[Tensor, "n d"] | None = None
    targets: Float[Tensor, "n d"] | None = None
    seed: int = 0
    offsets: Int[Tensor, " n"] | None = None
    site: str = ""

    def __post_init__(self) -> None:
        n = len(self.item_ids)
        lengths = {
            name: len(values)
            for name, values in (
                ("steps", self.steps),
                ("spread", self.spread),
                ("donors", self.donors),
                ("source", self.source),
                ("targets", self.targets),
                ("offsets", self.offsets),
            )
            if values is not None
        }
        if any(length != n for length in lengths.values()):
            raise EditError(
                f"a context has {n} item ids and {', '.join(f'{length} {name}' for name, length in lengths.items())}",
                needed="one of each for every selected pair of item and position",
                fix="give the item's id once for every position selected in it",
            )
