"""Runs every condition on every item, the clean run first; knows nothing of what a row holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from prismlens.data.load import require_letters
from prismlens.errors import EditError, SettingError
from prismlens.experiment.records import records
from prismlens.interventions import Cut, Edit, Identity, Swap, match_donors
from prismlens.interventions.donors import ON_MISSING
from prismlens.positions import question
from prismlens.results import Results, environment_manifest
from prismlens.trace import PrismModel, Run
from prismlens.types import Item

CLEAN = "clean"
"""The name of the condition without edits."""
NOTHING = Edit(Identity(), positions=question, site="blocks.0.hook_resid_pre")
"""An edit that every item has the positions for, and that changes nothing."""


def run_conditions(
    model: PrismModel,
    items: Sequence[Item],
    conditions: Mapping[str, Sequence[Edit]],
    *,
    on_missing: str = "raise",
    progress: bool = False,
) -> Results:
    """Run every condition on every item, the clean run first.

    Args:
        model: the model; edits that it already has apply to the clean run too.
        items: with options and answers.
        conditions: name -> edits, applied in order.
        on_missing: for an item that a condition cannot be applied to (nobody can be its donor, or it lacks the
            positions, for example because the model emitted no latents): ``"raise"``, or ``"drop"`` to leave it out of
            that condition and list it in the manifest under ``left_out``.
        progress: show a bar over conditions.

    Returns:
        One row an item and condition, in that order of conditions: ``item, group, category, answer, condition``;
        ``choice, content_chosen, correct``; ``letter_logprob`` (of the right letter), ``margin`` (over the best other
        letter), ``kl_to_clean`` (over the options, from clean to condition), ``latent_cosine_to_clean`` (mean over
        steps); ``same_latents, same_output`` (bit for bit: the model's own vectors before any edit; the text and the
        options' log-probabilities); ``steps_taken``; ``donor, donor_content, outcome`` (``follow``, ``stay`` or
        ``other``) where the condition swaps; ``text``. Where items are left out, "clean" is a clean run of the others
        alone: the last bits of a number depend on what else is in its batch.

    Raises:
        ItemError: an item without options or answer.
        EditError: a condition is called ``"clean"``, has no edits, swaps twice, or mixes modes.
        SiteError: an edit's site does not exist in the model.
        SettingError: `on_missing` is neither of the two.
        DonorError: an item has no possible donor.
        RoleError: an item lacks the positions of an edit.
    """
    require_letters(items)
    _check(conditions, on_missing)
    views = {name: model.edited(*edits) for name, edits in conditions.items()}
    if on_missing == "raise":
        for edits in conditions.values():  # before anything runs
            _with_donors(items, edits, on_missing)
    clean = model.generate(items)
    reference = model.clean().generate(items) if model.active_edits else clean
    rows = records(CLEAN, clean, clean, {})
    left_out: dict[str, list[str]] = {}
    for name, edits in tqdm(conditions.items(), desc=f"{model.name}: conditions", disable=not progress):
        able = _with_positions(clean, edits) if on_missing == "drop" else list(items)
        kept = _with_donors(able, edits, on_missing)
        before = clean
        if len(kept) < len(items):
            left_out[name] = sorted({item.id for item in items} - {item.id for item in kept})
        if kept:
            known = reference.take(able)
            run = views[name].generate(kept, reference=known)
            if name in left_out:
                before = model.edited(replace(NOTHING, mode=edits[0].mode)).generate(kept, reference=known)
            rows += records(name, run, before, _donors_of(run, edits, items))
    manifest = _manifest(model, items, conditions, clean) | {"left_out": left_out}
    return Results(pd.DataFrame(rows), manifest)


def _donors_of(run: Run, edits: Sequence[Edit], items: Sequence[Item]) -> dict[str, Item]:
    """Item id -> donor in the condition's own swap, which comes after any that the model had."""
    if not any(isinstance(edit.op, Swap) for edit in edits):
        return {}
    by_id = {item.id: item for item in items}
    return {name: by_id[donor] for name, donor in run.donors[-1].items()}


def _with_positions(clean: Run, edits: Sequence[Edit]) -> list[Item]:
    """The items in which every position that the edits name exists."""
    lacking = torch.zeros(len(clean.items), dtype=torch.bool, device=clean.latents.device)
    for edit in edits:
        for role in (edit.op.to, edit.op.by) if isinstance(edit.op, Cut) else (edit.positions,):
            lacking |= role.missing(clean.unrolled)
    return [item for item, gone in zip(clean.items, lacking.tolist(), strict=True) if not gone]


def _with_donors(items: Sequence[Item], edits: Sequence[Edit], on_missing: str) -> list[Item]:
    """The items that every swap of a condition finds a donor for."""
    dropped: set[str] = set()
    for edit in edits:
        if isinstance(edit.op, Swap):
            dropped.update(match_donors(items, edit.op, seed=edit.seed, on_missing=on_missing).dropped)
    return [item for item in items if item.id not in dropped]


def _manifest(
    model: PrismModel, items: Sequence[Item], conditions: Mapping[str, Sequence[Edit]], clean: Run
) -> dict[str, Any]:
    """Everything that the rows depend on."""
    settings = model.settings()
    return {
        "model": model.name, "weights": model.revision, "dtype": str(model.hf.dtype), "device": str(model.hf.device),
        "attention": model.hf.config._attn_implementation, "batch_size": model.batch_size,
        "threads": torch.get_num_threads(), "latent_steps": settings.latent_steps,
        "latent_exit": settings.latent_exit, "max_new_tokens": settings.max_new_tokens, "decoding": "greedy",
        "model_edits": [edit.to_json() for edit in model.active_edits],
        "conditions": {name: [edit.to_json() for edit in edits] for name, edits in conditions.items()},
        "items": [item.id for item in items], "items_without_latents": list(clean.without_latents),
        "unparsed_clean": [item.id for item, c in zip(clean.items, clean.choice, strict=True) if c is None],
        "environment": environment_manifest(),
    }  # fmt: skip


def _check(conditions: Mapping[str, Sequence[Edit]], on_missing: str) -> None:
    """Refuse conditions that say nothing, and those whose rows could not name one donor."""
    if on_missing not in ON_MISSING:
        raise SettingError(f"on_missing={on_missing!r}", needed=f"one of {', '.join(map(repr, ON_MISSING))}")
    if not conditions:
        raise EditError("no conditions were given", needed="at least one: a name and its edits")
    for name, edits in conditions.items():
        if name == CLEAN or not edits:
            raise EditError(
                f"a condition {name!r} with {len(edits)} edits", needed=f"a name other than {CLEAN!r}, and edits"
            )
        swaps = [edit for edit in edits if isinstance(edit.op, Swap)]
        if len(swaps) > 1:
            raise EditError(
                f"the condition {name!r} swaps {len(swaps)} times", needed="one donor an item", fix="use one Swap"
            )
