"""A glance at a cache: how long the vectors are at each layer and kind of position; reads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from prismlens.errors import SiteError
from prismlens.positions import answer, image, latent, lead, options, question, template
from prismlens.sites import axes

KINDS = (template, image, question, options, lead, latent, answer)
PATCHES = "patches"


def norm_lines(cache: Any, asked: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and one line a site: the mean norm of its vectors at each kind of position that the cache holds.

    A position of several kinds counts in each; heads are taken together.

    Args:
        cache: activations.
        asked: a hook name, or its short form for all layers (``"resid_post"``).

    Raises:
        SiteError: the cache has no such site.
    """
    short = {name: name.rpartition(".")[2].removeprefix("hook_") for name in cache}
    names = [name for name in cache if asked in (name, short[name])]
    if not names:
        raise SiteError(
            f"a cache without {asked!r}",
            needed=f"one of {', '.join(dict.fromkeys(short.values()))}",
            fix="cache it with names_filter=",
        )
    found = {name: _means(cache, name) for name in names}
    kinds = [kind for kind in (*map(str, KINDS), PATCHES) if any(kind in own for own in found.values())]
    lines = [[name, *(own.get(kind, "") for kind in kinds)] for name, own in found.items()]
    return ["mean norm", *kinds], lines


def _means(cache: Any, name: str) -> Mapping[str, str]:
    """Kind of position -> mean norm; kinds without a position are not there."""
    norms = cache.flat(name).float().flatten(1).norm(dim=1)
    if axes(name)[0] != "batch":
        return {PATCHES: f"{norms.mean():.2f}"}
    where = cache.where(name)
    masks = {str(kind): kind.mask(cache.unrolled)[where.rows, where.columns] for kind in KINDS}
    return {kind: _mean(norms, mask) for kind, mask in masks.items() if bool(mask.any())}


def _mean(norms: Float[Tensor, " n"], mask: Bool[Tensor, " n"]) -> str:
    return f"{norms[mask].mean():.2f}"


def as_text(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines under headings in columns of equal width."""
    table = [list(headings), *map(list, lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)
