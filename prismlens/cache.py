"""Activations by hook name at chosen positions; knows nothing of how they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SiteError
from prismlens.positions import Positions
from prismlens.sites import LATENT, get_act_name
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[str, Tensor]):
    """``cache["blocks.3.hook_resid_post"]`` or ``cache["resid_post", 3]`` -> ``[n, d]`` or ``[batch, pos, d]``.

    Where every item has the same number of selected positions the value is ``[batch, pos, d]``; otherwise it is
    ``[n, d]``, one row a selected position, in the order of `positions`. The site of the vectors that are fed back has
    values at latents only, see `where`; where none is selected the cache does not hold it.

    Args:
        values_by_name: name -> ``[n, d]``.
        positions: rows and columns of the n selected positions.
        unrolled: the sequences that they belong to.
    """

    values_by_name: Mapping[str, Float[Tensor, "n d"]]
    positions: Positions
    unrolled: Unrolled

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """The activation of that name, or of that short name and layer."""
        name = key if isinstance(key, str) else get_act_name(*key)
        flat = self.flat(name)
        counts = self.where(name).rows.bincount(minlength=self.unrolled.shape[0])
        regular = bool((counts == counts[0]).all())
        return flat.reshape(len(counts), int(counts[0]), *flat.shape[1:]) if regular else flat

    def flat(self, name: str) -> Float[Tensor, "n d"]:
        """The activation with one row for each position of `where`, whatever their number in each item."""
        if name not in self:
            at_latents = name in self.values_by_name
            raise SiteError(
                f"the cache holds no {name!r}",
                needed=f"one of {', '.join(self)}",
                cause="none of the positions is a latent" if at_latents else "names_filter left it out",
                fix="choose latents" if at_latents else "run again with a names_filter that lets it through",
            )
        return self.values_by_name[name]

    def where(self, name: str) -> Positions:
        """The positions at which the site has values: all of them, but latents only where latents are fed back."""
        rows, columns = self.positions.rows, self.positions.columns
        if name != LATENT:
            return self.positions
        fed = self.unrolled.steps[rows, columns] >= 0
        return Positions(rows[fed], columns[fed], self.positions.dropped)

    def __contains__(self, key: object) -> bool:
        """Whether there are values of that name; `Mapping` itself would wait for a KeyError."""
        try:
            name = get_act_name(*key) if isinstance(key, tuple) else key
        except SiteError:
            return False
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, values in self.values_by_name.items() if len(values))

    def __len__(self) -> int:
        return len(set(self))
