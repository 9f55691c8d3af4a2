"""From a hook name to its site, or to an error with the closest names; knows a model only by its numbers of layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from prismlens.errors import SiteError
from prismlens.sites.site import Site
from prismlens.sites.table import (
    ALIASES,
    FIRST,
    GROUPS,
    HEAD,
    LAST,
    LAYERS,
    PER_LAYER,
    UNEMBED_IN,
    VISION,
    VISION_FIRST,
    VISION_LAST,
    VISION_LAYER,
    WHOLE_ALIASES,
    Row,
)

_FAR = 10**6
_PARTS: tuple[tuple[int, Mapping[str, Row]], ...] = (
    (-3 * _FAR, VISION_FIRST),
    (-_FAR, VISION_LAST),
    (-1, FIRST),
    (_FAR, LAST),
)
"""The sites outside blocks, with what sorts them among the blocks (a vision block is at its number - 2 million)."""
BLOCK_PATH, VISION_BLOCK_PATH = f"{LAYERS}.{{layer}}", f"{VISION}.blocks.{{layer}}"
"""The module of a block, by its number."""
_BLOCK = re.compile(r"(vision\.)?blocks\.(0|[1-9][0-9]*)\.(.+)")


def site(name: str, n_layers: int, *, n_vision_layers: int = 0) -> Site:
    """The site of that name, which may be TransformerLens 3's or 4's.

    Args:
        name: e.g. ``"blocks.2.hook_resid_post"`` or ``"blocks.2.hook_out"``.
        n_layers: blocks of the language model.
        n_vision_layers: blocks of the vision tower; with 0 its sites are unknown.

    Raises:
        SiteError: an unknown name (with the closest ones), or a layer that the model does not have.
    """
    own = canonical(name)
    for order, rows in _PARTS:
        if own in rows and (n_vision_layers or not rows[own].path.startswith(VISION)):
            place = (order, list(rows).index(own))
            return _site(own, rows[own], rows[own].path.format(last=n_vision_layers - 1), place)
    match = _BLOCK.fullmatch(own)
    vision = match is not None and match[1] is not None
    rows, count = (VISION_LAYER, n_vision_layers) if vision else (PER_LAYER, n_layers)
    if match is None or match[3] not in rows or not count:
        raise SiteError(
            f"no site is called {name!r}",
            needed="a hook name such as " + ", ".join(repr(close) for close in closest(name, n_layers)),
            cause="a misspelt name, or one that this version does not serve",
            fix="see model.hook_dict for all names",
        )
    layer = int(match[2])
    if layer >= count:
        raise SiteError(f"{name!r} names layer {layer}", needed=f"a layer from 0 to {count - 1}: the model has {count}")
    path = (VISION_BLOCK_PATH if vision else BLOCK_PATH).format(layer=layer)
    place = (layer - 2 * _FAR if vision else layer, list(rows).index(match[3]))
    return _site(own, rows[match[3]], path + rows[match[3]].path, place)


def canonical(name: str) -> str:
    """The name under which the table has it: that of TransformerLens 3, where version 4 has another."""
    match = re.fullmatch(r"((?:vision\.)?blocks\.[0-9]+\.)(.+)", name)
    if match is None:
        return WHOLE_ALIASES.get(name, name)
    return match[1] + ALIASES.get(match[2], match[2])


def axes(name: str) -> tuple[str, ...]:
    """The axes of a site's value by its name (or its gradient's), whatever the model's number of layers."""
    own = canonical(name.removesuffix("_grad"))
    match = _BLOCK.fullmatch(own)
    if match is not None:
        rows = VISION_LAYER if match[1] else PER_LAYER
        return tuple(rows[match[3]].axes.split()) if match[3] in rows else ("batch", "pos")
    for _, rows in _PARTS:
        if own in rows:
            return tuple(rows[own].axes.split())
    return ("batch", "pos")


def expand(name: str, n_layers: int) -> tuple[Site, ...]:
    """The sites that an edit's site name stands for: a group's at every layer, or the one of that name."""
    if name in GROUPS:
        return tuple(site(f"blocks.{layer}.{inner}", n_layers) for layer in range(n_layers) for inner in GROUPS[name])
    return (site(name, n_layers),)


def site_names(n_layers: int, *, head: bool = False, n_vision_layers: int = 0, every: bool = False) -> tuple[str, ...]:
    """The names of a model's sites, in forward order.

    Args:
        n_layers: blocks of the language model.
        head: the model has an LVR head.
        n_vision_layers: blocks of the vision tower.
        every: those too that are kept only where they are asked for (see `Site.asked`).
    """
    rows = dict(_rows(n_layers, n_vision_layers))
    return tuple(name for name, row in rows.items() if (every or not row.asked) and (head or name != HEAD))


def refuse_headless(name: str, *, head: bool) -> None:
    """Raise SiteError where the LVR head's site is asked for on a model that has no head."""
    if name == HEAD and not head:
        raise SiteError(
            f"{HEAD!r} was asked for, and the model has no LVR head",
            needed='a model whose config names a head ("lvr_head")',
            cause="without a head the states are fed back as they are",
            fix=f"use {UNEMBED_IN!r}",
        )


def inner_name(short: str) -> str | None:
    """The name inside a block that a short form stands for (``"k"`` -> ``"attn.hook_k"``), or None."""
    if short in PER_LAYER or short in ALIASES:
        return ALIASES.get(short, short)
    matches = [name for name in PER_LAYER if name.rpartition("hook_")[2] == short.removeprefix("hook_")]
    norm = re.fullmatch(r"(?:hook_)?(scale|normalized)([12])", short)
    if norm is not None:
        return f"ln{norm[2]}.hook_{norm[1]}"
    return matches[0] if len(matches) == 1 else None


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """TransformerLens' short form in full.

    Args:
        name: ``"resid_post"``, ``"k"``, ``"scale"``, ``"embed"``, a form with the layer in it such as ``"k6"`` or
            ``"scale4ln1"``, or a full name, which stays as it is.
        layer: of the block; None outside blocks.
        layer_type: ``"ln1"`` or ``"ln2"`` where `name` is a norm's; elsewhere ``"attn"``, ``"mlp"`` or ``"blocks"``.

    Returns:
        e.g. ``("resid_post", 5)`` -> ``"blocks.5.hook_resid_post"``, ``("scale", 5, "ln1")`` ->
        ``"blocks.5.ln1.hook_scale"``, ``("scale",)`` -> ``"ln_final.hook_scale"``.

    Raises:
        SiteError: no activation inside a block has that name, or a norm's is asked for without saying which.
    """
    if layer is None:
        packed = re.fullmatch(r"([a-z_]*[a-z])([0-9]+)([a-z0-9]*)", name)
        if packed is None or name.startswith("hook_"):
            return _OUTSIDE.get(name.removeprefix("hook_"), name)
        return get_act_name(packed[1], packed[2], packed[3] or layer_type)
    short = _SYNONYMS.get(name, name)
    inside = _LAYER_TYPES.get(layer_type or "", layer_type)
    inner = inner_name(f"{inside}.hook_{short.removeprefix('hook_')}" if inside else short)
    if inner is None:
        known = dict.fromkeys(one.rpartition("hook_")[2] for one in PER_LAYER if not one.endswith(".hook_in"))
        raise SiteError(
            f"no activation is called {name!r}" + (f" in {layer_type!r}" if layer_type else ""),
            needed="one of " + ", ".join(known) + ', scale and normalized with layer_type="ln1" or "ln2"',
        )
    return f"blocks.{layer}.{inner}"


_OUTSIDE = {"embed": "hook_embed", "scale": "ln_final.hook_scale", "normalized": "ln_final.hook_normalized"}
_SYNONYMS = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_post": "post",
}  # fmt: skip
_LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
"""Short forms that TransformerLens takes, too."""


def closest(name: str, n_layers: int, known: Sequence[str] | None = None) -> list[str]:
    """The three names most like the given one, of different kinds: not one name at three layers.

    Args:
        name: what was asked for.
        n_layers: blocks of the language model.
        known: names to choose from; all that some model has by default.
    """
    every = [one for one in (dict(_rows(n_layers, 1)) if known is None else known) if one != name]
    found: dict[str, str] = {}
    for one in difflib.get_close_matches(name, [*every, *GROUPS], n=len(every), cutoff=0.0):
        found.setdefault(re.sub(r"\.\d+\.", ".", one), one)
        if len(found) == 3:
            break
    return list(found.values())


def _rows(n_layers: int, n_vision_layers: int) -> Iterator[tuple[str, Row]]:
    """Every name with its row, in forward order."""
    if n_vision_layers:
        yield from VISION_FIRST.items()
        for layer in range(n_vision_layers):
            yield from ((f"vision.blocks.{layer}.{name}", row) for name, row in VISION_LAYER.items())
        yield from VISION_LAST.items()
    yield from FIRST.items()
    for layer in range(n_layers):
        yield from ((f"blocks.{layer}.{name}", row) for name, row in PER_LAYER.items())
    yield from LAST.items()


def _site(name: str, row: Row, path: str, order: tuple[int, int]) -> Site:
    return Site(name, path, row.end, order, row.view, row.axes, row.eager, row.asked)
