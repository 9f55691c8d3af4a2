"""What an operation may know besides the value it changes; knows no operation and no model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from prismlens.errors import EditError


@dataclass(frozen=True, eq=False)
class Context:
    """Facts about the n selected (item, position) pairs, in the order of the value's rows.

    Args:
        item_ids: id of the item of each pair.
        steps: latent step of each pair, -1 outside latents.
        std: standard deviation of each dimension at this site, measured on clean runs.
        mean: mean of each dimension at this site, measured on clean runs.
        donors: the donor's value for each pair.
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
    std: Float[Tensor, " d"] | None = None
    mean: Float[Tensor, " d"] | None = None
    donors: Float[Tensor, "n d"] | None = None
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
                ("donors", self.donors),
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
