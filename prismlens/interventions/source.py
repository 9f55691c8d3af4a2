"""Values of another run, by site and item, under a name and a hash of their content; knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from prismlens.cache import ActivationCache
from prismlens.errors import EditError
from prismlens.interventions.placed import Placed
from prismlens.unrolled import Unrolled

LATENT = "hook_latent"
KEYS = {"source", "digest"}


@dataclass(frozen=True)
class Source:
    """What `Patch` puts in. Two sources are equal where name and digest are; JSON holds only these two.

    Args:
        name: how results name it, for example ``"tiny/n-lvr"``.
        digest: hash of sites, item ids, places and values.
        values: by site; None where only name and hash are known, because the edit was read from a file.
    """

    name: str
    digest: str
    values: Mapping[str, Placed] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) and text for text in (self.name, self.digest)):
            raise EditError(f"a source with name {self.name!r} and digest {self.digest!r}", needed="two texts")

    @classmethod
    def latents(cls, name: str, unrolled: Unrolled) -> Source:
        """The vectors that a finished run fed back (``run.unrolled``), of every item and step.

        Raises:
            EditError: the run has no latents, or some that are not finite.
        """
        return cls._of(name, {LATENT: Placed.latents(unrolled)})

    @classmethod
    def activations(cls, name: str, cache: ActivationCache) -> Source:
        """All sites of a cache, at the positions that it was read at: choose the role of the edit.

        Raises:
            EditError: the cache is empty, or holds values that are not finite.
        """
        return cls._of(name, {site: Placed.of(cache, site) for site in cache})

    @classmethod
    def _of(cls, name: str, values: Mapping[str, Placed]) -> Source:
        """A source of copies."""
        kept = {site: Placed(placed.values.detach().clone(), placed.rows) for site, placed in values.items()}
        if not any(len(placed.values) for placed in kept.values()):
            raise EditError(
                f"a source {name!r} without values", needed="a run with latents, or a cache with some sites"
            )
        infinite = [site for site, placed in kept.items() if not bool(placed.values.isfinite().all())]
        if infinite:
            raise EditError(
                f"a source {name!r} with values at {infinite[0]} that are not finite", needed="finite values"
            )
        return cls(name, _digest(kept), MappingProxyType(kept))

    def at(self, site: str) -> Placed:
        """The values at a site.

        Raises:
            EditError: the values are not there, or not of this site.
        """
        if self.values is None:
            raise EditError(
                f"{self} is known by name and hash only",
                needed="the source itself: a file holds no values",
                cause="the edit was read from JSON or YAML",
                fix="pass it again: Edit.from_json(text, sources=[source]), or build the edit anew",
            )
        if site not in self.values:
            raise EditError(
                f"{self} has no values of {site!r}",
                needed=f"one of its sites: {', '.join(self.values)}",
                fix="edit at that site, or read a cache with this one",
            )
        return self.values[site]

    def to_record(self) -> dict[str, Any]:
        """Name and hash."""
        return {"source": self.name, "digest": self.digest}

    def __str__(self) -> str:
        return f"<source {self.name!r}: {self.digest[:12]}>"


def _digest(values: Mapping[str, Placed]) -> str:
    """A hash of everything that the values are, the same on every machine."""
    out = hashlib.blake2b(digest_size=16)
    for site in sorted(values):
        rows = values[site].values.cpu().contiguous()
        where = [(item, list(by_place.items())) for item, by_place in values[site].rows.items()]
        out.update(f"{site}|{rows.dtype}|{tuple(rows.shape)}|{where}|".encode())
        out.update(rows.view(torch.uint8).numpy().tobytes())
    return out.hexdigest()
