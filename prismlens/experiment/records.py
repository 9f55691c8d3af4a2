"""One row an item: what was chosen, how sure, and how that compares with the clean run; runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prismlens.metrics import cosine, kl_over_options, margin
from prismlens.trace import Run
from prismlens.types import LETTERS, Item


def records(
    condition: str, run: Run, clean: Run, donors: Mapping[str, Item], *, seed: int | None = None
) -> list[dict[str, Any]]:
    """The condition's row for every item of its run.

    Args:
        condition: its name.
        run: under the condition.
        clean: the clean run to compare with; it may hold more items.
        donors: item id -> donor, where the condition swaps.
        seed: of what the condition draws.
    """
    scores = {name: values.tolist() for name, values in _scores(run, clean.take(run.items)).items()}
    out = []
    for row, item in enumerate(run.items):
        donor = donors.get(item.id)
        choice = run.choice[row]
        chosen = None if choice is None else item.options[LETTERS.index(choice)]
        out.append(
            {
                "item": item.id, "group": item.group, "category": item.category, "answer": item.answer,
                "condition": condition, "seed": seed, "choice": choice, "content_chosen": chosen,
                "correct": choice == item.answer, "option_logprobs": _own_options(run.option_logprobs[row], item),
                **{name: values[row] for name, values in scores.items()},
                "steps_taken": int(run.steps_taken[row]), "donor": None if donor is None else donor.id,
                "donor_content": None if donor is None else donor.content,
                "outcome": None if donor is None else outcome(chosen, item.content, donor.content),
                "text": run.text[row],
            }
        )  # fmt: skip
    return out


def _own_options(logprobs: Float[Tensor, " option"], item: Item) -> list[float] | None:
    """The log-probability of each of the item's options, None where the model wrote no answer."""
    own = logprobs[: len(item.options)].tolist()
    return None if any(map(isnan, own)) else own


def outcome(chosen: str | None, own: str | None, donor: str | None) -> str:
    """Whose answer was given: the donor's (``follow``), the item's own (``stay``), or neither (``other``)."""
    if chosen is not None and chosen == own:
        return "stay"
    return "follow" if chosen is not None and chosen == donor else "other"


def _scores(run: Run, clean: Run) -> dict[str, Tensor]:
    """Measures of every item against its own clean run; NaN where either has no answer, or no latents.

    The cosine is the mean over the steps that both took: beyond them the vectors are padding, whose cosine is NaN.
    """
    batch = len(run.items)
    right = torch.tensor([LETTERS.index(item.answer or "A") for item in run.items])
    names = ("letter_logprob", "margin", "kl_to_clean", "latent_cosine_to_clean")
    out: dict[str, Tensor] = {name: torch.full((batch,), float("nan")) for name in names}
    scores, before = _same_width(run.option_logprobs.cpu().double(), clean.option_logprobs.cpu().double())
    own = ~scores.isnan().any(1)
    both = own & ~before.isnan().any(1)
    out["letter_logprob"][own] = scores[own].gather(1, right[own, None])[:, 0].float()
    out["margin"][own] = margin(scores[own], right[own]).float()
    out["kl_to_clean"][both] = kl_over_options(before[both], scores[both]).float()
    steps = min(run.latents.shape[1], clean.latents.shape[1])
    if steps:
        out["latent_cosine_to_clean"] = cosine(run.latents[:, :steps], clean.latents[:, :steps]).nanmean(1).cpu()
    same_count = (run.steps_taken == clean.steps_taken).cpu()
    same_vectors = (run.latents[:, :steps] == clean.latents[:, :steps]).all((1, 2)).cpu()
    same_text = torch.tensor([mine == theirs for mine, theirs in zip(run.text, clean.text, strict=True)])
    out["same_latents"] = same_count & same_vectors
    out["same_output"] = same_text & _equal_rows(scores, before)
    return out


def _equal_rows(a: Float[Tensor, "batch option"], b: Float[Tensor, "batch option"]) -> Bool[Tensor, " batch"]:
    """True where every number of the row is the same; a missing one (NaN) equals a missing one."""
    return ((a == b) | (a.isnan() & b.isnan())).all(1)


def _same_width(
    a: Float[Tensor, "batch option"], b: Float[Tensor, "batch other"]
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]]:
    """Both tables without the columns that no item of the smaller one has."""
    width = min(a.shape[1], b.shape[1])
    return a[:, :width], b[:, :width]
