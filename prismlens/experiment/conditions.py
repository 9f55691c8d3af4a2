"""Runs every condition on every item, the clean run first; knows nothing of what a row holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from prismlens.data.load import require_letters
from prismlens.errors import SettingError
from prismlens.experiment.plan import make_plan
from prismlens.experiment.processes import Processes, launched
from prismlens.experiment.progress import Progress
from prismlens.experiment.shards import InFolder, InMemory
from prismlens.experiment.sweep import Sweep, with_donors
from prismlens.experiment.unit import Units
from prismlens.experiment.variants import Variant, variants
from prismlens.interventions import Edit
from prismlens.interventions.donors import ON_MISSING
from prismlens.results import Results, environment_manifest
from prismlens.trace import PrismModel
from prismlens.trace.checked import checked_items
from prismlens.types import Item


def run_conditions(
    model: PrismModel,
    items: Sequence[Item],
    conditions: Mapping[str, Sequence[Edit]],
    *,
    on_missing: str = "raise",
    seeds: Sequence[int] | None = None,
    batch_rows: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Results:
    """Run every condition on every item, the clean run first.

    Prompts run once an item; what follows them is decoded for several conditions in one batch (see `Plan`). A condition
    that changes something in the prompt gets a forward over it of its own.

    Args:
        model: the model; edits that it already has apply to the clean run too.
        items: with options and answers.
        conditions: name -> edits, applied in order.
        on_missing: for an item that a condition cannot be applied to (nobody can be its donor, or it lacks the
            positions, for example because the model emitted no latents): ``"raise"``, or ``"drop"`` to leave it out of
            that condition and list it in the manifest under ``left_out``.
        seeds: run every condition that draws something (noise, donors) once under each of these, instead of its edits'
            own seeds.
        batch_rows: rows of a decode batch; as many as fit into `plan.CACHE_BYTES` by default.
        out: a folder that keeps what is finished. Whenever the run is interrupted, the same call goes on from there,
            and ends with the same files, bit for bit; they lie in its ``results``. Under `accelerate launch` the
            processes share the work through this folder (without it each would do all of it), and the files are the
            same again.
        progress: show a bar over runs of one item, with rate and time left.

    Returns:
        One row an item, condition and seed, in that order of conditions and seeds: ``item, group, category, answer,
        condition, seed`` (missing where nothing is drawn); ``choice, content_chosen, correct``; ``option_logprobs`` (a
        list, None without an answer); ``letter_logprob`` (of the right letter), ``margin`` (over the best other
        letter), ``kl_to_clean`` (over the options, from clean to condition), ``latent_cosine_to_clean`` (mean over
        steps); ``same_latents, same_output`` (bit for bit: the model's own vectors before any edit; the text and the
        options' log-probabilities); ``steps_taken``; ``donor, donor_content, outcome`` (``follow``, ``stay`` or
        ``other``) where the condition swaps; ``text``.

    Raises:
        ItemError: an item without options or answer, or two with one id.
        EditError: a condition is called ``"clean"``, has no edits, swaps twice, mixes modes, or has an edit that
            another undoes.
        SiteError: an edit's site does not exist in the model.
        SettingError: `on_missing`, `seeds` or `batch_rows` is not what it may be.
        DonorError: an item has no possible donor.
        RoleError: an item lacks the positions of an edit.
        ResultsError: `out` holds something else, or was begun under another plan; the differences are listed.
    """
    every = variants(conditions, seeds)
    _check(model, items, every, on_missing)
    units = Units(model, items, make_plan(model, items, len(every), batch_rows))
    units.one_condition_at_a_time_if_needed()
    manifest = _manifest(model, items, conditions, seeds, units, on_missing)
    if out is None:
        return Results(*_swept(units, every, on_missing, InMemory(), Processes(), manifest, progress))
    return _in_folder(InFolder(Path(out).expanduser().resolve()), units, every, on_missing, manifest, progress)


def _check(model: PrismModel, items: Sequence[Item], every: Sequence[Variant], on_missing: str) -> None:
    """Refuse what cannot be, before anything runs."""
    require_letters(checked_items(items))
    if on_missing not in ON_MISSING:
        raise SettingError(f"on_missing={on_missing!r}", needed=f"one of {', '.join(map(repr, ON_MISSING))}")
    for variant in every:
        model.edited(*variant.edits)
        if on_missing == "raise":
            with_donors(items, variant.edits, on_missing)


def _in_folder(
    shards: InFolder,
    units: Units,
    every: Sequence[Variant],
    on_missing: str,
    manifest: dict[str, Any],
    progress: bool,
) -> Results:
    """The sweep whose finished parts are files, and which the first process turns into results."""
    processes = launched()
    plan = {**manifest, "item_digests": [_digest(item) for item in units.items]}
    if processes.first:
        shards.claim(plan)
    processes.wait()
    shards.require(plan)
    if not shards.results.exists():
        shown = progress and processes.first
        rows, about = _swept(units, every, on_missing, shards, processes, manifest, shown)
        processes.wait()  # every process has read all parts
        if processes.first:
            Results(rows, about).save(shards.results)
    processes.wait()
    if processes.first:
        shards.clear()
    return Results.load(shards.results)


def _swept(
    units: Units,
    every: Sequence[Variant],
    on_missing: str,
    shards: InFolder | InMemory,
    processes: Processes,
    manifest: dict[str, Any],
    progress: bool,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows, and the manifest with what is known only afterwards."""
    passes = len(every) + 1 + bool(units.model.active_edits)
    total = passes * sum(len(units.items_of(unit)) for unit in units.share(processes))
    with Progress(total, f"{units.model.name}: conditions", progress) as bar:
        sweep = Sweep(units.model, units, every, on_missing, shards, processes, bar)
        rows, clean = sweep.run()
    frame = pd.DataFrame(rows)
    frame["seed"] = frame["seed"].astype("Int64")
    found = {
        "items_without_latents": list(clean.without_latents),
        "unparsed_clean": [item.id for item, c in zip(clean.items, clean.choice, strict=True) if c is None],
        "left_out": sweep.left_out,
    }
    return frame, {**manifest, **found}


def _manifest(
    model: PrismModel,
    items: Sequence[Item],
    conditions: Mapping[str, Sequence[Edit]],
    seeds: Sequence[int] | None,
    units: Units,
    on_missing: str,
) -> dict[str, Any]:
    """Everything that the rows depend on, known before anything runs."""
    settings = model.settings()
    return {
        "model": model.name, "weights": model.revision, "dtype": str(model.hf.dtype), "device": model.hf.device.type,
        "attention": model.hf.config._attn_implementation, "batch_size": model.batch_size,
        "plan": units.plan.manifest(), "threads": torch.get_num_threads(), "latent_steps": settings.latent_steps,
        "latent_exit": settings.latent_exit, "max_new_tokens": settings.max_new_tokens, "decoding": "greedy",
        "on_missing": on_missing, "seeds": None if seeds is None else list(seeds),
        "model_edits": [edit.to_json() for edit in model.active_edits],
        "conditions": {name: [edit.to_json() for edit in edits] for name, edits in conditions.items()},
        "items": [item.id for item in items], "environment": environment_manifest(),
    }  # fmt: skip


def _digest(item: Item) -> str:
    """A hash of all that the model and the rows see of an item."""
    told = (item.id, item.question, item.options, item.answer, item.boxes, item.group, item.category)
    image = item.image
    pixels = image.tobytes() if isinstance(image, Image.Image) else image.read_bytes()
    form = f"{image.mode} {image.size}" if isinstance(image, Image.Image) else ""
    return hashlib.sha256(f"{told!r}{form}".encode() + pixels).hexdigest()
