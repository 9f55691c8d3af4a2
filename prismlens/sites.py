"""Places in the network by their TransformerLens names, and the module behind each; knows no values and no edits."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from prismlens.errors import SiteError

LATENT = "hook_latent"
"""The vector that is fed back, before the first layer."""
HEAD = "hook_latent_head"
"""The output of the LVR head at every position, on models that have one: at p - 1 it is what is fed back at p."""
NORMALIZED = "ln_final.hook_normalized"
"""The state after the final norm."""


@dataclass(frozen=True)
class Site:
    """One place: a module of the model and which end of it.

    Args:
        name: the TransformerLens name, e.g. ``"blocks.2.hook_resid_post"``.
        path: the module, as a path from the model.
        end: ``"input"`` (first positional argument), ``"output"``, or ``"shared"``: the first positional argument, with
            which the layer around the module goes on too, so that a change has to be made in the tensor itself.
        order: sorts sites as a forward reaches them.
    """

    name: str
    path: str
    end: str
    order: tuple[int, int]


_LAYER = "model.language_model.layers.{layer}"
PER_LAYER: dict[str, tuple[str, str]] = {
    "hook_resid_pre": ("", "input"),
    "attn.hook_q": (".self_attn.q_proj", "output"),
    "attn.hook_k": (".self_attn.k_proj", "output"),
    "attn.hook_v": (".self_attn.v_proj", "output"),
    "hook_attn_out": (".self_attn.o_proj", "output"),
    "hook_resid_mid": (".post_attention_layernorm", "shared"),
    "hook_mlp_out": (".mlp", "output"),
    "hook_resid_post": ("", "output"),
}
"""Name inside a block -> (module inside the layer, end), in the order in which a forward reaches them. Queries, keys
and values are as projected: before the rotary embedding, heads not yet split (last axis ``head * d_head``)."""

WHOLE: dict[str, tuple[str, str, int]] = {
    LATENT: ("hook_latent", "output", -1),
    NORMALIZED: ("model.language_model.norm", "output", 10**6),
    HEAD: ("hook_latent_head", "output", 10**6 + 1),
}
"""Sites outside the blocks -> (module, end, order)."""

GROUPS: dict[str, tuple[str, ...]] = {"kv": ("attn.hook_k", "attn.hook_v")}
"""Short names for the same sites at every layer: ``"kv"`` is every layer's keys and values."""


def site(name: str, n_layers: int) -> Site:
    """The site of that name.

    Raises:
        SiteError: an unknown name (with the closest ones), or a layer that the model does not have.
    """
    if name in WHOLE:
        path, end, order = WHOLE[name]
        return Site(name, path, end, (order, 0))
    match = re.fullmatch(r"blocks\.(0|[1-9][0-9]*)\.(.+)", name)
    if match is None or match[2] not in PER_LAYER:
        raise SiteError(
            f"no site is called {name!r}",
            needed="a hook name such as " + ", ".join(repr(close) for close in closest(name, n_layers)),
            cause="a misspelt name, or one that this version does not serve",
            fix="see prismlens.sites.site_names(n_layers) for all names",
        )
    layer = int(match[1])
    if layer >= n_layers:
        raise SiteError(
            f"{name!r} names layer {layer}", needed=f"a layer from 0 to {n_layers - 1}: the model has {n_layers}"
        )
    inner, end = PER_LAYER[match[2]]
    return Site(name, _LAYER.format(layer=layer) + inner, end, (layer, list(PER_LAYER).index(match[2])))


def expand(name: str, n_layers: int) -> tuple[Site, ...]:
    """The sites that an edit's site name stands for: a group's at every layer, or the one of that name."""
    if name in GROUPS:
        return tuple(site(f"blocks.{layer}.{inner}", n_layers) for layer in range(n_layers) for inner in GROUPS[name])
    return (site(name, n_layers),)


def site_names(n_layers: int, *, head: bool = False) -> tuple[str, ...]:
    """Every site of a model with that many layers, in forward order; `head`: it has an LVR head."""
    inner = [f"blocks.{layer}.{name}" for layer in range(n_layers) for name in PER_LAYER]
    return (LATENT, *inner, NORMALIZED, *([HEAD] if head else []))


def refuse_headless(name: str, *, head: bool) -> None:
    """Raise SiteError where the LVR head's site is asked for on a model that has no head."""
    if name == HEAD and not head:
        raise SiteError(
            f"{HEAD!r} was asked for, and the model has no LVR head",
            needed='a model whose config names a head ("lvr_head")',
            cause="without a head the states are fed back as they are",
            fix=f"use {NORMALIZED!r}",
        )


def get_act_name(name: str, layer: int | None = None) -> str:
    """TransformerLens' short form in full: ``("resid_post", 5)`` -> ``"blocks.5.hook_resid_post"``."""
    if layer is None:
        return name
    candidates = [inner for inner in PER_LAYER if inner.split("hook_")[-1] == name.removeprefix("hook_")]
    if not candidates:
        raise SiteError(f"no activation is called {name!r}", needed="one of " + ", ".join(_short_names()))
    return f"blocks.{layer}.{candidates[0]}"


def closest(name: str, n_layers: int) -> list[str]:
    """The three names most like the given one."""
    names = [*site_names(n_layers), *GROUPS]
    return difflib.get_close_matches(name, names, n=3, cutoff=0.0)


def _short_names() -> list[str]:
    return [inner.split("hook_")[-1] for inner in PER_LAYER]
