"""Which sites a names_filter lets through; knows no model but its numbers of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from prismlens.errors import SiteError
from prismlens.sites import GROUPS, canonical, closest, inner_name, refuse_headless, site, site_names

NamesFilter: TypeAlias = str | Sequence[str] | Callable[[str], bool] | None
"""One name or short name (``"resid_post"``: at every layer), several, or a predicate of full names. None is every site
of the language model that is neither large nor in need of eager attention (see `Site.asked`): those have to be named,
or let through by a predicate."""


def _nothing(name: str) -> None:
    """Refuse no name."""


def matching_names(
    names_filter: NamesFilter,
    n_layers: int,
    *,
    head: bool = False,
    n_vision_layers: int = 0,
    stop_at_layer: int | None = None,
    refuse: Callable[[str], None] = _nothing,
) -> list[str]:
    """The site names that the filter lets through, in forward order.

    Args:
        names_filter: see `NamesFilter`.
        n_layers: blocks of the language model.
        head: the model has an LVR head.
        n_vision_layers: blocks of the vision tower.
        stop_at_layer: only sites before this block; one beyond it may not be named.
        refuse: raises where a name that is asked for has no meaning in the model's architecture.

    Raises:
        SiteError: a name that matches nothing, or that lies beyond the stop; a filter that lets nothing through.
    """
    every = site_names(n_layers, head=head, n_vision_layers=n_vision_layers, every=True)
    beyond = {} if stop_at_layer is None else dict.fromkeys(_beyond(every, n_layers, n_vision_layers, stop_at_layer))
    if names_filter is None:
        chosen = set(site_names(n_layers, head=head)) - set(beyond)
    elif callable(names_filter):
        chosen = {name for name in every if names_filter(name)} - set(beyond)
    else:
        asked = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for one in asked:
            refuse_headless(canonical(one), head=head)
            refuse(canonical(one))
        chosen = {name for one in asked for name in _matches(one, every, n_layers, stop_at_layer)}
        late = [name for name in every if name in chosen and name in beyond]
        if late:
            raise SiteError(
                f"names_filter asks for {late[0]!r} and stop_at_layer is {stop_at_layer}",
                needed="sites before that block",
                cause="nothing from that block on is computed",
            )
    if not chosen:
        raise SiteError("names_filter lets nothing through", needed="at least one of the model's sites")
    return [name for name in every if name in chosen]


def matching_sites(asked: str | Callable[[str], bool], every: Sequence[str], n_layers: int) -> list[str]:
    """The names that a hook's name stands for: itself, a group's or short form's at every layer, or a predicate's.

    Raises:
        SiteError: none.
    """
    if callable(asked):
        found = [name for name in every if asked(name)]
        if not found:
            raise SiteError("a hook's predicate lets no name through", needed="at least one of model.hook_dict")
        return found
    if asked in GROUPS:
        return [f"blocks.{layer}.{inner}" for layer in range(n_layers) for inner in GROUPS[asked]]
    return _matches(asked, every, n_layers, None, asker="a hook")


def _matches(
    asked: str, every: Sequence[str], n_layers: int, stop_at_layer: int | None, asker: str = "names_filter"
) -> list[str]:
    """The full names that one entry stands for: itself, or its short form at every layer (before the stop)."""
    own = canonical(asked)
    if own in every:
        return [own]
    inner = inner_name(asked)
    if inner is None or re.match(r"(vision\.)?blocks\.", asked):
        raise SiteError(
            f"{asker} asks for {asked!r}",
            needed="a hook name such as " + ", ".join(map(repr, closest(asked, n_layers, every))),
            cause=f"a misspelt name, or a part that this model of {n_layers} layers does not have",
            fix="see model.hook_dict for all names",
        )
    return [f"blocks.{layer}.{inner}" for layer in range(n_layers if stop_at_layer is None else stop_at_layer)]


def _beyond(every: Sequence[str], n_layers: int, n_vision_layers: int, stop: int) -> list[str]:
    """The names that a forward which stops before a block does not reach."""
    return [name for name in every if site(name, n_layers, n_vision_layers=n_vision_layers).order >= (stop, 0)]
