"""Forwards over a batch: with given vectors at the slots, or with the model's own latents; knows no loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.errors import SettingError
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.visibility import masks
from prismlens.training.batch import Batch


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward over a batch yields.

    Args:
        states: final-norm states of all columns.
        latent: what the model would feed after each column: the states, or what its LVR head makes of them.
        sources: for every slot the vector that the model itself would feed there; 0 where a row has no slot.
        after: the residual stream after some layers, by their number.
    """

    states: Float[Tensor, "batch pos d_model"]
    latent: Float[Tensor, "batch pos d_model"]
    sources: Float[Tensor, "batch slot d_model"]
    after: Mapping[int, Float[Tensor, "batch pos d_model"]]


def forced_pass(
    model: LVRForConditionalGeneration,
    batch: Batch,
    features: Float[Tensor, "image_token d_model"],
    fed: Float[Tensor, "batch slot d_model"],
    layers: tuple[int, ...] = (),
) -> Pass:
    """One forward over whole rows, with the given vectors at the slots.

    Args:
        model: the model.
        batch: in any layout.
        features: merger outputs of the batch's images.
        fed: one vector a slot.
        layers: keep the residual stream after so many layers.
    """
    run = batch.unrolled
    some = fed.shape[1] > 0
    with _layer_states(model, layers) as after:
        out = model.step(
            run.input_ids,
            run.position_ids,
            masks(
                run, model.rules, n_layers=model.n_layers, n_queries=run.shape[1], blocks=batch.blocks,
                groups=batch.groups,
            ),
            image_features=features,
            latents=fed if some else None,
            latent_index=run.steps if some else None,
            keep=slice(0),
        )  # fmt: skip
    rows = torch.arange(run.shape[0], device=run.device)[:, None]
    sources = out.latent[rows, batch.sources] * batch.slots[..., None]
    return Pass(out.hidden, out.latent, sources, {layer: parts[0] for layer, parts in after.items()})


def own_pass(
    model: LVRForConditionalGeneration,
    batch: Batch,
    features: Float[Tensor, "image_token d_model"],
    layers: tuple[int, ...] = (),
) -> Pass:
    """Prompts, then each latent from the state before it, then answers: the gradient runs through the whole loop.

    Raises:
        SettingError: the batch is not laid out in waves, one cut a wave.
    """
    run = batch.unrolled
    if bool((run.steps[:, : batch.cuts[0]] >= 0).any()):
        raise SettingError(
            "a batch with latents before its first cut",
            needed="a layout in waves: each latent waits for the one before",
        )
    cache = DynamicCache(config=model.config.text)
    rows = torch.arange(run.shape[0], device=run.device)[:, None]
    source_of = torch.full_like(run.steps, 0)
    slot_rows, slot_columns = (run.steps >= 0).nonzero(as_tuple=True)
    source_of[slot_rows, slot_columns] = batch.sources[slot_rows, run.steps[slot_rows, slot_columns]]
    outs: list[StepOutput] = []
    with _layer_states(model, layers) as after:
        start = before = 0
        for stop in batch.cuts:
            fed = index = None
            if outs and bool((run.steps[:, start:stop] >= 0).any()):
                fed = outs[-1].latent[rows, (source_of[:, start:stop] - before).clamp(min=0)]
                own = torch.arange(stop - start, device=run.device)
                index = torch.where(run.steps[:, start:stop] >= 0, own, -1)
            outs.append(_advance(model, batch, cache, start, stop, features, fed, index))
            before, start = start, stop
    hidden, latent = (torch.cat([getattr(o, name) for o in outs], 1) for name in ("hidden", "latent"))
    sources = latent[rows, batch.sources] * batch.slots[..., None]
    return Pass(hidden, latent, sources, {layer: torch.cat(parts, 1) for layer, parts in after.items()})


def _advance(
    model: LVRForConditionalGeneration,
    batch: Batch,
    cache: DynamicCache,
    start: int,
    stop: int,
    features: Tensor,
    fed: Tensor | None,
    index: Tensor | None,
) -> StepOutput:
    """One cached forward over columns ``start:stop``."""
    run = batch.unrolled
    so_far = replace(
        run, input_ids=run.input_ids[:, :stop], segments=run.segments[:, :stop], steps=run.steps[:, :stop],
        patches=run.patches[:, :stop], position_ids=run.position_ids[:, :, :stop], stages=run.stages[:, :stop],
    )  # fmt: skip
    return model.step(
        run.input_ids[:, start:stop],
        run.position_ids[:, :, start:stop],
        masks(
            so_far, model.rules, n_layers=model.n_layers, n_queries=stop - start, blocks=batch.blocks[:, :stop],
            groups=batch.groups[:, :stop],
        ),
        past_key_values=cache,
        image_features=features if start == 0 else None,
        latents=fed,
        latent_index=index,
        keep=slice(0),
    )  # fmt: skip


@contextmanager
def _layer_states(model: LVRForConditionalGeneration, layers: tuple[int, ...]) -> Iterator[dict[int, list[Tensor]]]:
    """Collects the residual stream after some layers while the context is open, one tensor a forward."""
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    decoder = model.model.language_model.layers
    handles = [
        decoder[after - 1].register_forward_hook(lambda module, args, output, to=to: to.append(output))
        for after, to in kept.items()
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
