"""Runs one patching sweep over item pairs, exactly or by gradient; knows no statistics.

*Held*: the finished sequence of the receiver is replayed, teacher-forced, with its own latents and text as inputs.
A patch changes the states behind it, in higher layers and at later positions; the vectors that were fed back stay
the receiver's, even where a patch changes the states that they came from, and so does the text before the token
that is measured. A patch at a latent's own position, at `hook_latent` or in any layer, acts. Where pairs are
measured stands with `paired_runs`.

*Free*: the receiver's prompt is run anew under the patch, the model makes its later latents from what it then
sees, and writes its text. Only the prompt and the latents can be patched. The letters of the two answers are
compared where the answer starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from tqdm.auto import tqdm

from prismlens.errors import RoleError
from prismlens.patching.cells import EVERYWHERE, Cell, Sweep, cells_of, n_heads
from prismlens.patching.chunk import Chunk
from prismlens.patching.metric import Metric, metric_name
from prismlens.patching.places import Places, places_of
from prismlens.patching.result import PatchingSweep
from prismlens.patching.runs import NEAR_ZERO, PairedRuns, paired_runs, refuse_none
from prismlens.patching.settings import MIN_GAP, Settings, checked_sweep
from prismlens.positions import Role
from prismlens.results import Results, environment_manifest
from prismlens.sites import LATENT
from prismlens.trace import PrismModel
from prismlens.types import Item


def patching_sweep(
    model: PrismModel,
    clean_items: Sequence[Item],
    corrupted_items: Sequence[Item],
    name: str,
    *,
    metric: Metric = "logit_diff",
    positions: Role | Sequence[Role] | None = None,
    mode: Literal["held", "free"] = "held",
    direction: Literal["denoising", "noising"] = "denoising",
    method: Literal["exact", "attribution", "both"] = "exact",
    min_gap: float = MIN_GAP,
    seed: int = 0,
    progress: bool = False,
) -> PatchingSweep:
    """Patch one side of item pairs with what the other has, one cell at a time, and measure what comes back.

    A cell is a layer and a place (and a head). The receiver is the corrupted side (denoising: does the clean value
    there suffice?) or the clean one (noising: is it needed?); the donor is the other. The recovered fraction of a pair
    is (patched - corrupted) / (clean - corrupted) in either direction.

    Args:
        model: the model, without edits.
        clean_items: items whose answer the model gets from the image, as `load_pairs` makes them.
        corrupted_items: the same items with one change, in the same order.
        name: an entry of `SWEEPS`.
        metric: ``"logit_diff"`` (clean answer minus corrupted), ``"logprob"`` (of the clean answer), or a function,
            see `Metric`.
        positions: the places, see `places_of`. A sweep over all positions takes at most one role.
        mode: ``"held"`` or ``"free"``, see above.
        direction: ``"denoising"`` or ``"noising"``.
        method: ``"exact"``, ``"attribution"`` (the gradient alone: one forward and backward for all cells), ``"both"``.
        min_gap: pairs whose two metrics differ by less are left out, and counted.
        seed: of the bootstrap.
        progress: show a bar over batches of pairs.

    Raises:
        ItemError: the lists do not match, prompts of a pair differ, or no pair is left.
        RoleError: a role is absent in some pair, or lies behind what can be patched.
        SiteError: the model has no such site.
        SettingError: an unknown choice, or attribution in free mode.
        EditError: the model has edits.
    """
    settings = Settings(metric, positions, mode, direction, method, min_gap)
    sweep = checked_sweep(model, clean_items, corrupted_items, name, settings)
    clean, corrupted = model.generate(clean_items), model.generate(corrupted_items)
    runs = paired_runs(clean, corrupted, model.processor, mode)
    places = _places(runs, sweep, positions)
    rows, excluded = _rows(model, runs, places, cells_of(sweep, model.hf, len(places.labels)), settings, progress)
    return PatchingSweep(Results(rows, _manifest(model, name, sweep, places, settings, runs, excluded)), seed)


def _rows(
    model: PrismModel, runs: PairedRuns, places: Places, cells: list[Cell], settings: Settings, progress: bool
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """A row for every cell and pair, and the pairs that were left out by reason; pairs run in batches."""
    excluded = {reason: list(ids) for reason, ids in runs.excluded.items()}
    rows: list[dict[str, Any]] = []
    starts = range(0, len(runs.decisions), model.batch_size)
    what = f"{model.name}: {len(cells)} cells"
    for start in tqdm(starts, desc=what, disable=not progress, unit="batch", leave=False):
        chunk = list(range(start, min(start + model.batch_size, len(runs.decisions))))
        part = Places(places.labels, places.masks[:, chunk, :])
        found, near = Chunk(model, runs.take(chunk), part, cells, settings).rows()
        rows += found
        if near:
            excluded.setdefault(NEAR_ZERO, []).extend(near)
    refuse_none(len(rows), excluded)
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"}), excluded


def _places(runs: PairedRuns, sweep: Sweep, positions: Role | Sequence[Role] | None) -> Places:
    """The places of the sweep; all positions as one where it has no axis for them, latents only at their own site."""
    places = places_of(runs, positions)
    if sweep.sites == (LATENT,):
        latents = runs.clean.steps[:, : runs.width] >= 0
        if positions is None:
            there = (places.masks & latents).any((1, 2)).nonzero().flatten().tolist()
            places = Places(tuple(places.labels[i] for i in there), places.masks[there])
        if not places.labels or bool((places.masks & ~latents).any()):
            raise RoleError(
                f"{LATENT!r} at {', '.join(places.labels) or 'no position'}",
                needed="latents only",
                cause="the model emitted none, or a role names other positions",
                fix="use latent",
            )
    if not sweep.by_pos and positions is None:
        return Places((EVERYWHERE,), places.masks.any(0, keepdim=True))
    return places


def _manifest(
    model: PrismModel, name: str, sweep: Sweep, places: Places, settings: Settings, runs: PairedRuns,
    excluded: dict[str, list[str]],
) -> dict[str, Any]:  # fmt: skip
    """How the rows came about, and the labels of every axis."""
    layers = [] if sweep.sites == (LATENT,) else list(range(model.hf.n_layers))
    heads = list(range(max(n_heads(model.hf, site) for site in sweep.sites))) if sweep.heads else []
    labels = {"site": list(sweep.sites), "layer": layers, "pos": list(places.labels), "head": heads}
    return {
        "model": model.name, "weights": model.revision, "dtype": str(model.hf.dtype), "device": str(model.hf.device),
        "batch_size": model.batch_size, "sweep": name, "axes": {axis: labels[axis] for axis in sweep.axes},
        "metric": metric_name(settings.metric), "mode": settings.mode, "direction": settings.direction,
        "method": settings.method, "min_gap": settings.min_gap, "excluded": excluded,
        "pairs": len(runs.decisions) + sum(len(ids) for ids in runs.excluded.values()),
        "environment": environment_manifest(),
    }  # fmt: skip
