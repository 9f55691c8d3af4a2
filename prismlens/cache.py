"""Activations by hook name at chosen positions; knows nothing of how they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SiteError
from prismlens.positions import Positions
from prismlens.sites import get_act_name
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[str, Tensor]):
    """``cache["blocks.3.hook_resid_post"]`` or ``cache["resid_post", 3]`` -> ``[n, d]`` or ``[batch, pos, d]``.

    Where every item has the same number of selected positions the value is ``[batch, pos, d]``; otherwise it is
    ``[n, d]``, one row a selected position, in the order of `positions`.

    Args:
        values: name -> ``[n, d]``.
        positions: rows and columns of the n selected positions.
        unrolled: the sequences that they belong to.
    """

    values_by_name: Mapping[str, Float[Tensor, "n d"]]
    positions: Positions
    unrolled: Unrolled

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """The activation of that name, or of that short name and layer."""
        name = key if isinstance(key, str) else get_act_name(*key)
        if name not in self.values_by_name:
            raise SiteError(
                f"the cache holds no {name!r}",
                needed=f"one of {', '.join(self.values_by_name)}",
                cause="names_filter left it out",
                fix="run again with a names_filter that lets it through",
            )
        flat = self.values_by_name[name]
        counts = self.positions.rows.bincount(minlength=self.unrolled.shape[0])
        regular = len(counts) > 0 and bool((counts == counts[0]).all()) and int(counts[0]) > 0
        return flat.reshape(len(counts), int(counts[0]), *flat.shape[1:]) if regular else flat

    def flat(self, name: str) -> Float[Tensor, "n d"]:
        """The activation with one row a selected position, whatever their number in each item."""
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)
