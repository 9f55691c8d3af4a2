"""How close latents are to the image features they are taught to resemble, and to others'; says nothing about use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

import prismlens.stats as stats
from prismlens.errors import RoleError
from prismlens.interventions import Edit, Oracle, Swap, match_donors
from prismlens.metrics import cosine, mse
from prismlens.positions import latent
from prismlens.trace import PrismModel, Run
from prismlens.types import Item

FREE, FORCED = "free", "teacher-forced"


@dataclass(frozen=True, eq=False)
class Alignment:
    """One row an item, mode and step: ``item, group, mode, step, stage, cosine, cosine_other, mse, other``.

    Args:
        rows: ``cosine`` and ``mse`` are those to the item's own target, ``cosine_other`` that to the same step's target
            of another item (``other``): its image and its answer are different, its category is the same.
        left_out: ids of the items without such another item.
        seed: of the intervals.
    """

    rows: pd.DataFrame
    left_out: tuple[str, ...] = ()
    seed: int = 0

    def frame(self, *, by_stage: bool = False) -> pd.DataFrame:
        """One line a mode: mean ``cosine``, ``cosine_other``, their paired ``difference`` and ``mse``, with intervals.

        With `by_stage` one line a mode and stage of the latent block. Intervals resample groups; ``p`` is that of the
        difference. A cosine says little without its floor: vectors of one kind share a mean, so unrelated ones are
        alike too.
        """
        by = ["mode", "stage"] if by_stage else ["mode"]
        lines = [
            dict(zip(by, rows.iloc[0][by], strict=True)) | self._line(rows)
            for _, rows in self.rows.groupby(by, sort=False)
        ]
        return pd.DataFrame(lines).set_index(by)

    def _line(self, rows: pd.DataFrame) -> dict[str, Any]:
        line: dict[str, Any] = {"n": rows.item.nunique()}
        for name in ("cosine", "cosine_other", "mse"):
            interval = stats.cluster_mean_interval(rows[name].to_numpy(), rows.group, seed=self.seed)
            line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        gap = stats.paired_difference(rows.cosine_other.to_numpy(), rows.cosine.to_numpy(), rows.group, seed=self.seed)
        return line | {
            "difference": gap.estimate, "difference_low": gap.low, "difference_high": gap.high, "p": gap.p,
        }  # fmt: skip


def alignment(model: PrismModel, items: Sequence[Item], *, seed: int = 0, on_missing: str = "raise") -> Alignment:
    """Measure the alignment of the latents, as the model emits them (free) and as training saw them (teacher-forced).

    Teacher-forced, every latent before is replaced by its target, and the state that would become the next is compared
    with the next target: what the field reports. Free is what the model does when it is used.

    Args:
        model: a model with latents.
        items: with boxes and answers.
        seed: of the choice of other items, and of the intervals.
        on_missing: for items without another item of a different image and answer: ``"raise"`` or ``"drop"``.

    Raises:
        ItemError: some items have no box.
        DonorError: some item has no other item to compare with.
        RoleError: the model emitted no latents for some item, or another number than the checkpoint's.
    """
    others = match_donors(items, Swap(donor="different-answer"), seed=seed, on_missing=on_missing)
    kept = [item for item in items if item.id in others]
    steps = model.settings().latent_steps
    every = dict(zip((item.id for item in items), model.targets(items, steps), strict=True))
    run = model.generate(kept)
    _refuse_uneven(run, steps)
    forced = model.edited(Edit(Oracle(), mode="held"))
    states = {}
    for mode, asked in ((FREE, model), (FORCED, forced)):
        _, cache = asked.run_with_cache(kept, model.latent_site, positions=latent.source, run=run)
        states[mode] = cache[model.latent_site]
    names = [stage.name for stage in model.settings().stages_of(model.hf.config) for _ in range(stage.steps)]
    rows = [row for mode, values in states.items() for row in _rows(kept, mode, values, every, others, names)]
    return Alignment(pd.DataFrame(rows), others.dropped, seed)


def _refuse_uneven(run: Run, steps: int) -> None:
    """A RoleError where an item's latents and its targets differ in number; none at all is `latent.source`'s to say."""
    uneven = [item.id for item, n in zip(run.items, run.steps_taken.tolist(), strict=True) if n not in (0, steps)]
    if uneven:
        raise RoleError(
            f"{len(uneven)} of {len(run.items)} items have more or fewer than {steps} latents: "
            f"{', '.join(map(repr, uneven[:5]))}",
            needed="one latent for each target",
            cause="the model itself decides when a block ends, or entered a second one",
            fix="leave these items out, or load the model with a fixed number of steps",
        )


def _rows(
    items: Sequence[Item],
    mode: str,
    states: Float[Tensor, "item step d_model"],
    targets: Mapping[str, Float[Tensor, "step d_model"]],
    others: Mapping[str, str],
    stages: Sequence[str],
) -> list[dict[str, Any]]:
    """One row an item and step."""
    out = []
    for item, own in zip(items, states, strict=True):
        goal, other = targets[item.id], targets[others[item.id]]
        near, far, error = cosine(own, goal), cosine(own, other), mse(own, goal)
        out += [
            {
                "item": item.id, "group": item.group, "mode": mode, "step": step, "stage": stages[step],
                "cosine": float(near[step]), "cosine_other": float(far[step]),
                "mse": float(error[step]), "other": others[item.id],
            }
            for step in range(len(own))
        ]  # fmt: skip
    return out
