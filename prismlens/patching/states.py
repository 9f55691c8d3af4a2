"""One side of some pairs, replayed once: what the patched forwards start from or are given; patches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.errors import SiteError
from prismlens.models.visibility import LayerMasks, masks
from prismlens.sites import LATENT, site
from prismlens.trace.batch import Engine
from prismlens.trace.forward import Read, Write, traced_step
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, eq=False)
class States:
    """A replay of finished sequences, cut after the last column that matters.

    Args:
        run: the sequences, uncut.
        width: how many columns were replayed.
        values: site name -> its values, zero at padding (and off the latents, at the latent site).
        cache: keys and values of every layer and column.
        hidden: final-norm states.
    """

    run: Unrolled
    width: int
    values: Mapping[str, Float[Tensor, "pair pos *rest"]]
    cache: DynamicCache
    hidden: Float[Tensor, "pair pos d_model"]

    def logits(self, engine: Engine, source: Int[Tensor, " pair"]) -> Float[Tensor, "pair d_vocab"]:
        """Logits at one column of every pair."""
        return engine.hf.lm_head(self.hidden[torch.arange(len(source), device=source.device), source])


def entry(layer: int) -> str:
    """The site from which the layers from `layer` on are resumed."""
    return f"blocks.{layer}.hook_resid_pre"


@torch.no_grad()
def replay(engine: Engine, run: Unrolled, width: int, names: Sequence[str]) -> States:
    """One forward over the first `width` columns of finished sequences that keeps the named sites at every position."""
    cache = DynamicCache(config=engine.hf.config.text)
    inputs = step_inputs(engine, run, width) | {"past_key_values": cache}
    mask = run.valid[:, :width]
    reads = [Read(site(name, engine.hf.n_layers), mask) for name in dict.fromkeys(names)]
    traced = traced_step(engine.wrapper, inputs, [], reads)
    values = {
        name: dense(value, mask & (run.steps[:, :width] >= 0) if name == LATENT else mask)
        for name, value in traced.values.items()
    }
    return States(run, width, values, cache, traced.output.hidden)


def step_inputs(engine: Engine, run: Unrolled, width: int) -> dict[str, object]:
    """Keyword arguments of one `step` over the first `width` columns, images included; no logits."""
    hf, prompt = engine.hf, engine.processor(run.items)
    return {
        "input_ids": run.input_ids[:, :width],
        "position_ids": run.position_ids[:, :, :width],
        "attention_mask": step_masks(engine, run, width),
        "latents": run.latents if run.latents.shape[1] else None,
        "latent_index": run.steps[:, :width],
        "image_features": hf.image_features(prompt.pixel_values.to(hf.device), prompt.image_grid_thw.to(hf.device)),
        "keep": slice(0),
    }


def step_masks(engine: Engine, run: Unrolled, width: int) -> LayerMasks:
    """The masks of the first `width` columns. Rules name roles of the whole sequence, so the cut comes last."""
    whole = masks(run, engine.hf.rules, n_layers=engine.hf.n_layers, n_queries=run.shape[1])
    cut = {id(mask): mask[..., :width, :width] for mask in whole}
    return LayerMasks(cut[id(mask)] for mask in whole)


def spelled_out(name: str, n_layers: int) -> bool:
    """Whether a site exists only in attention that spells out its arithmetic, whose last bits are others."""
    return bool(getattr(site(name, n_layers), "eager", False))


def dense(flat: Float[Tensor, "n *rest"], mask: Bool[Tensor, "pair pos"]) -> Float[Tensor, "pair pos *rest"]:
    """Values of the mask's positions in their places, zero elsewhere."""
    out = flat.new_zeros(*mask.shape, *flat.shape[1:])
    out[mask] = flat
    return out


def write(
    engine: Engine,
    name: str,
    mask: Bool[Tensor, "row query"],
    given: Float[Tensor, "row query *rest"],
    heads: Int[Tensor, " row"] | None,
) -> Write:
    """The write that puts `given` at the mask's positions, or only the part of each row's head.

    Raises:
        SiteError: heads were asked for at a site whose values are not split into heads.
    """
    if heads is not None and given.ndim < 4:
        raise SiteError(
            f"heads of {name!r}, whose values are {tuple(given.shape[2:])} a position",
            needed="values with an axis of heads",
            cause="this version serves the site before it is split into heads",
        )

    def change(values: Tensor, selected: Bool[Tensor, "row query"]) -> Tensor:
        new = given[selected].to(values.dtype)
        if heads is None:
            return new.reshape(values.shape)
        n = torch.arange(len(values), device=values.device)
        own = heads[selected.nonzero()[:, 0]]
        out = values.clone().reshape(new.shape)  # a change may get the axes after the position as one
        out[n, own] = new[n, own]
        return out.reshape(values.shape)

    return Write(site(name, engine.hf.n_layers), mask, change)
