"""What a sweep patches: its sites, its axes, and the list of its cells; knows no values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from prismlens.models.latent import LatentModel
from prismlens.sites import LATENT

EVERYWHERE = "all"
"""The label of the one place of a sweep that patches all positions together."""


@dataclass(frozen=True)
class Sweep:
    """One kind of sweep.

    Args:
        sites: names inside a block, or `LATENT`; with several the result has an axis ``site`` in front.
        by_pos: whether places are an axis; else all positions are patched together.
        heads: whether heads are an axis, the last one.
    """

    sites: tuple[str, ...]
    by_pos: bool = True
    heads: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """The result's axes."""
        there = {"site": len(self.sites) > 1, "layer": self.sites != (LATENT,), "pos": self.by_pos, "head": self.heads}
        return tuple(name for name, has in there.items() if has)


_HEAD = {
    "out": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}
SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "latent": Sweep((LATENT,)),
        "resid_pre": Sweep(("hook_resid_pre",)),
        "resid_mid": Sweep(("hook_resid_mid",)),
        "resid_post": Sweep(("hook_resid_post",)),
        "attn_out": Sweep(("hook_attn_out",)),
        "mlp_out": Sweep(("hook_mlp_out",)),
        "block_every": Sweep(("hook_resid_pre", "hook_attn_out", "hook_mlp_out")),
        **{f"attn_head_{name}_by_pos": Sweep((site,), heads=True) for name, site in _HEAD.items()},
        **{f"attn_head_{name}_all_pos": Sweep((site,), by_pos=False, heads=True) for name, site in _HEAD.items()},
        "attn_head_by_pos_every": Sweep(tuple(_HEAD.values()), heads=True),
        "attn_head_all_pos_every": Sweep(tuple(_HEAD.values()), by_pos=False, heads=True),
    }
)
"""The names of TransformerLens' ``get_act_patch_*``, ``resid_post``, and the vectors that are fed back."""


@dataclass(frozen=True)
class Cell:
    """One cell: what is patched in a forward.

    Args:
        site: name inside a block, or `LATENT`.
        layer: the block; None for `LATENT`.
        place: index into the places.
        head: the head; None for all of the site's value.
    """

    site: str
    layer: int | None
    place: int
    head: int | None = None

    @property
    def name(self) -> str:
        """The site's full name."""
        return self.site if self.layer is None else f"blocks.{self.layer}.{self.site}"


def cells_of(sweep: Sweep, model: LatentModel, n_places: int) -> list[Cell]:
    """Every cell of the sweep, in the order of the result's axes."""
    out = []
    for site in sweep.sites:
        layers: Sequence[int | None] = (None,) if site == LATENT else range(model.n_layers)
        heads: Sequence[int | None] = range(n_heads(model, site)) if sweep.heads else (None,)
        out += [Cell(site, layer, place, head) for layer in layers for place in range(n_places) for head in heads]
    return out


def n_heads(model: LatentModel, site: str) -> int:
    """How many heads a site has: those of keys and values are shared by several of the queries."""
    text: Any = model.config.text
    return int(text.num_key_value_heads if site in ("attn.hook_k", "attn.hook_v") else text.num_attention_heads)
