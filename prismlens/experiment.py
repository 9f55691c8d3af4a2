"""Items x conditions -> one row each: what was chosen, how sure, against the clean run; computes no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from prismlens.errors import EditError, ItemError
from prismlens.interventions import Edit, Swap
from prismlens.metrics import cosine, kl_over_options, margin
from prismlens.results import Results, environment_manifest
from prismlens.trace import PrismModel, Run
from prismlens.types import LETTERS, Item

CLEAN = "clean"
"""The name of the condition without edits."""


def run_conditions(
    model: PrismModel,
    items: Sequence[Item],
    conditions: Mapping[str, Sequence[Edit]],
    *,
    progress: bool = False,
) -> Results:
    """Run every condition on every item, the clean run first.

    Args:
        model: the model; edits that it already has apply to the clean run too.
        items: with options and answers.
        conditions: name -> edits, applied in order.
        progress: show a bar over conditions.

    Returns:
        One row an item and condition, in that order of conditions: ``item, group, category, answer, condition``;
        ``choice, content_chosen, correct``; ``letter_logprob`` (of the right letter), ``margin`` (over the best other
        letter), ``kl_to_clean`` (over the options, from clean to condition), ``latent_cosine_to_clean`` (mean over
        steps), ``steps_taken``; ``donor, donor_content, outcome`` (``follow``, ``stay`` or ``other``) where there is a
        donor; ``text``.

    Raises:
        ItemError: an item without options or answer.
        EditError: a condition is called ``"clean"``, or has no edits.
    """
    _check(items, conditions)
    clean = model.generate(items)
    rows = _rows(CLEAN, clean, clean)
    for name, edits in tqdm(conditions.items(), desc="conditions", disable=not progress):
        rows += _rows(name, model.edited(*edits).generate(items, reference=clean), clean)
    return Results(pd.DataFrame(rows), _manifest(model, items, conditions, clean))


def _rows(condition: str, run: Run, clean: Run) -> list[dict[str, Any]]:
    """The condition's row for every item."""
    scores = _scores(run, clean)
    donors = run.donors[0] if run.donors else {}
    by_id = {item.id: item for item in run.items}
    out = []
    for row, item in enumerate(run.items):
        donor = by_id[donors[item.id]] if item.id in donors else None
        choice = run.choice[row]
        chosen = None if choice is None else item.options[LETTERS.index(choice)]
        out.append(
            {
                "item": item.id, "group": item.group, "category": item.category, "answer": item.answer,
                "condition": condition, "choice": choice, "content_chosen": chosen, "correct": choice == item.answer,
                **{name: float(values[row]) for name, values in scores.items()},
                "steps_taken": int(run.steps_taken[row]), "donor": None if donor is None else donor.id,
                "donor_content": None if donor is None else donor.content,
                "outcome": None if donor is None else outcome(chosen, item.content, donor.content),
                "text": run.text[row],
            }
        )  # fmt: skip
    return out


def _scores(run: Run, clean: Run) -> dict[str, Float[Tensor, " batch"]]:
    """Continuous measures of every item; NaN where either run has no answer, or no latents."""
    batch = len(run.items)
    right = torch.tensor([LETTERS.index(item.answer or "A") for item in run.items])
    names = ("letter_logprob", "margin", "kl_to_clean", "latent_cosine_to_clean")
    out = {name: torch.full((batch,), float("nan")) for name in names}
    own = ~run.option_logprobs.isnan().any(1).cpu()
    both = own & ~clean.option_logprobs.isnan().any(1).cpu()
    scores, before = run.option_logprobs.cpu().double(), clean.option_logprobs.cpu().double()
    out["letter_logprob"][own] = scores[own].gather(1, right[own, None])[:, 0].float()
    out["margin"][own] = margin(scores[own], right[own]).float()
    out["kl_to_clean"][both] = kl_over_options(before[both], scores[both]).float()
    steps = min(run.latents.shape[1], clean.latents.shape[1])
    if steps:
        out["latent_cosine_to_clean"] = cosine(run.latents[:, :steps], clean.latents[:, :steps]).mean(1).cpu()
    return out


def outcome(chosen: str | None, own: str | None, donor: str | None) -> str:
    """Whose answer was given: the donor's (``follow``), the item's own (``stay``), or neither (``other``)."""
    if chosen is not None and chosen == own:
        return "stay"
    return "follow" if chosen is not None and chosen == donor else "other"


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


def _check(items: Sequence[Item], conditions: Mapping[str, Sequence[Edit]]) -> None:
    """Refuse items that cannot be graded and conditions that say nothing."""
    ungraded = [item.id for item in items if item.answer is None or not item.options]
    if ungraded:
        raise ItemError(
            f"{len(ungraded)} of {len(items)} items have no options or no answer: {', '.join(ungraded[:5])}",
            needed="options and the right letter: corruption is scored by whether the choice stays right",
            fix="give `options=` and `answer=`, or use generate() for open questions",
        )
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
