"""Models that need their latents on a planted share of items: trained once a seed, the share set by attention rules.

In the part of items that a rule's ``share`` names, what follows the block sees nothing but the options and, at layer 0,
the vectors that were fed (the rules of ``tiny/bottleneck``); in the others it sees everything but the latents (the rule
of ``tiny/bypass``). Which items those are depends on a hash of the words of question and options, and the model is
trained with half of them on either side, so that the same weights work under any share.

python benchmarks/validity/mixtures.py    # trains what is missing, into runs/validity
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

import prismlens as pl
from prismlens.models.visibility import prompt_number
from prismlens.training.settings import TINY_RUN
from prismlens.training.sources import SceneSource
from prismlens.training.train import train
from prismlens.training.variants import VARIANTS, Phase, Variant

RUNS = Path(__file__).parents[2] / "runs" / "validity"
STEPS, STOPPED = 240, 101
"""The schedule is one of 240 steps; it is stopped early, as the answers are right well before its end."""
WEIGHTS_SEEDS = (0,)
SHARES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)


def rules(share: float) -> tuple[dict[str, Any], ...]:
    """The rules under which that share of all items can be answered through the injected vectors only."""
    needed = [{**rule, "share": [0.0, share]} for rule in VARIANTS["bottleneck"].visibility]
    free = [{**rule, "share": [share, 1.0]} for rule in VARIANTS["bypass"].visibility]
    return (*needed, *free)


MIXTURE = Variant(
    "mixture",
    "half of the items can be answered through the injected vectors only, the others without the latents only",
    (Phase(STEPS, inputs="own", lam=0.0, lr=0.5, mix=(("attribute", 2), ("relation", 3))),),
    visibility=rules(0.5),
    batch=12,
    parent="bottleneck",
    ships=False,
)


class Stop(TrainerCallback):
    """Ends a run after `STOPPED` steps."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Called by the trainer."""
        control.should_training_stop = control.should_training_stop or state.global_step >= STOPPED
        return control


def trained(seed: int) -> Path:
    """The folder of the model of that seed; it is trained first where it is missing, in minutes, on one thread."""
    folder = RUNS / f"mixture-{seed}"
    if not folder.exists():
        settings = replace(TINY_RUN, seed=seed)
        data = SceneSource(cache=RUNS / ".features")
        train(MIXTURE, f"tiny/{MIXTURE.parent}", data, folder, settings=settings, callbacks=[Stop()])
    return folder


def mixture(seed: int, share: float, *, batch_size: int) -> pl.PrismModel:
    """The model of that seed under the rules of a share."""
    model = pl.load(trained(seed), batch_size=batch_size)
    model.hf.config.visibility = list(rules(share))
    return model


def planted(model: pl.PrismModel, items: Sequence[pl.Item], share: float) -> list[bool]:
    """For every item whether the rules of that share make its answer need the vectors."""
    numbers = prompt_number(model.generate(items).unrolled)[:, 0]
    return [bool(number < share) for number in numbers]


if __name__ == "__main__":
    for number in WEIGHTS_SEEDS:
        trained(number)
