"""How far latents move, and how often the answer flips, when an image is edited; knows nothing of how it was edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import prismlens.stats as stats
from prismlens.errors import ItemError
from prismlens.trace import PrismModel
from prismlens.types import Item

RELEVANT, ELSEWHERE = "relevant", "elsewhere"


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One row a pair and latent step.

    Args:
        rows: ``pair`` (its number), ``item`` (id of the original), ``group``, ``kind`` (``"relevant"`` where the right
            answer of the two differs, else ``"elsewhere"``), ``step`` (-1 where there are no latents), ``cosine``
            (between the two latents), ``moved`` (distance between them, in units of the root mean square distance
            between latents of different originals at that step: 1 is as far as another item), ``flipped`` (whether the
            choice changed), ``right_before, right_after``.
    """

    rows: pd.DataFrame

    def frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One line a kind: ``n`` pairs, and means over steps then pairs, with intervals (bootstrap over groups).

        Columns ``n, cosine, moved, flipped, right_before, right_after``, each but n with ``_low`` and ``_high``. A
        model that uses what its latents hold has ``moved`` and ``flipped`` high where the edit is relevant and low
        elsewhere; latents that stay where answers flip did not carry the answer.
        """
        names = ["cosine", "moved", "flipped", "right_before", "right_after"]
        lines = []
        for kind, rows in self.rows.groupby("kind", sort=False):
            pairs: Any = rows.groupby("pair", sort=False)
            means, groups = pairs[names].mean(), pairs["group"].first()
            line: dict[str, Any] = {"kind": kind, "n": len(means)}
            for name in names:
                some = means[name].notna()
                if not some.any():
                    continue
                interval = stats.cluster_mean_interval(means[name][some].to_numpy(), groups[some], seed=seed)
                line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            lines.append(line)
        return pd.DataFrame(lines).set_index("kind")


def sensitivity(model: PrismModel, items: Sequence[Item], edited: Sequence[Item]) -> Sensitivity:
    """Compare each item with its edited version: one image edited, the question and the options the same.

    Both kinds of pairs can come in one call; what a pair is shows in its answers.

    Args:
        model: the model; its edits apply.
        items: the originals, with answers.
        edited: aligned with them.

    Raises:
        ItemError: the lists are not aligned, a pair differs in question or options, or an answer is not known.
    """
    _check_pairs(items, edited)
    # An original may stand in several pairs; the runs want one id an item.
    before = model.generate([replace(item, id=f"{n}:{item.id}") for n, item in enumerate(items)])
    after = model.generate([replace(item, id=f"{n}:{item.id}") for n, item in enumerate(edited)])
    steps = torch.minimum(before.steps_taken, after.steps_taken).tolist()
    first = {id(item): n for n, item in reversed(list(enumerate(items)))}
    scale = between_items(before.latents[sorted(first.values())])
    rows = []
    for n, (a, b) in enumerate(zip(items, edited, strict=True)):
        about = {
            "pair": n, "item": a.id, "group": a.group, "kind": ELSEWHERE if a.answer == b.answer else RELEVANT,
            "flipped": float(before.choice[n] != after.choice[n]), "right_before": float(before.choice[n] == a.answer),
            "right_after": float(after.choice[n] == b.answer),
        }  # fmt: skip
        old, new = before.latents[n].double(), after.latents[n].double()
        rows += [
            {
                **about, "step": k, "cosine": float(F.cosine_similarity(old[k], new[k], dim=0)),
                "moved": float((old[k] - new[k]).norm() / scale[k]),
            }
            for k in range(steps[n])
        ] or [{**about, "step": -1, "cosine": float("nan"), "moved": float("nan")}]  # fmt: skip
    return Sensitivity(pd.DataFrame(rows))


def between_items(latents: Float[Tensor, "item step d"]) -> Float[Tensor, " step"]:
    """Root mean square distance between latents of two different items at each step; NaN for a single item.

    It is the square root of twice the total variance (over n - 1).
    """
    return (2 * latents.double().var(0).sum(-1)).sqrt()


def _check_pairs(items: Sequence[Item], edited: Sequence[Item]) -> None:
    """An ItemError where the two lists are not minimal pairs."""
    if len(items) != len(edited) or not items:
        raise ItemError(f"{len(items)} items and {len(edited)} edited ones", needed="equally many, at least one")
    for a, b in zip(items, edited, strict=True):
        if (a.question, a.options) != (b.question, b.options):
            raise ItemError(
                f"item {a.id!r} and its edited version {b.id!r} differ in question or options",
                needed="the same question and options, and another image",
                cause="the lists are in different orders",
            )
        if a.answer is None or b.answer is None:
            raise ItemError(f"item {a.id!r} or its edited version has no answer", needed="answers of both")
