"""Which sites a names_filter lets through; knows no model but its number of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from prismlens.errors import SiteError
from prismlens.sites import PER_LAYER, closest, refuse_headless, site_names

NamesFilter: TypeAlias = str | Sequence[str] | Callable[[str], bool] | None
"""All names (None), one name or short name (``"resid_post"``: at every layer), several, or a predicate."""


def matching_names(names_filter: NamesFilter, n_layers: int, *, head: bool = False) -> list[str]:
    """The site names that the filter lets through, in forward order; `head`: the model has an LVR head.

    Raises:
        SiteError: a name that matches nothing, or a filter that lets nothing through.
    """
    every = site_names(n_layers, head=head)
    if names_filter is None:
        return list(every)
    if callable(names_filter):
        chosen = {name for name in every if names_filter(name)}
    else:
        asked = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for one in asked:
            refuse_headless(one, head=head)
        chosen = {name for one in asked for name in _matches(one, every, n_layers)}
    if not chosen:
        raise SiteError("names_filter lets nothing through", needed="at least one of the model's sites")
    return [name for name in every if name in chosen]


def _matches(asked: str, every: Sequence[str], n_layers: int) -> list[str]:
    """The full names that one entry stands for: itself, or its short form at every layer."""
    if asked in every:
        return [asked]
    inner = [name for name in PER_LAYER if asked in (name, name.split("hook_")[-1])]
    if not inner:
        raise SiteError(
            f"names_filter asks for {asked!r}",
            needed="a hook name such as " + ", ".join(map(repr, closest(asked, n_layers))),
        )
    return [f"blocks.{layer}.{inner[0]}" for layer in range(n_layers)]
