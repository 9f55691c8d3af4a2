"""Diagnostics while a model trains: every so many steps a copy goes to a function whose numbers are logged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prismlens.errors import SettingError, TrainingError
from prismlens.models.processor import LVRProcessor
from prismlens.trace import PrismModel, load
from prismlens.training.lora import merged
from prismlens.training.randomness import kept_randomness

Diagnose = Callable[[PrismModel], Mapping[str, float]]
PREFIX = "prism/"
"""Stands before the name of every logged number."""


class PrismCallback(TrainerCallback):
    """Runs `diagnose` every `every` steps, and after the last.

    The model that it gets is a copy, so that nothing it does can change the training; the copy needs the memory of one
    more model. The numbers stand in the run's log, and in every report, under ``prism/<name>``.

    Args:
        diagnose: a function of a loaded model; `prismlens.monitor` makes one.
        every: optimiser steps.
    """

    def __init__(self, diagnose: Diagnose, every: int) -> None:
        if type(every) is not int or every < 1:
            raise SettingError(f"every = {every!r}", needed="a whole number of steps, at least 1")
        self.diagnose, self.every = diagnose, every
        self._trainer: Any = None
        self._processor: LVRProcessor | None = None

    def attach(self, trainer: Any, processor: LVRProcessor) -> None:
        """Called by `train`: where numbers are logged, and how the model reads items.

        Raises:
            TrainingError: the run shards its weights.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise TrainingError(
                "PrismCallback on a run whose weights are sharded",
                needed="a whole copy of the model in one process",
                fix="diagnose its checkpoints afterwards, or train without sharding",
            )
        self._trainer, self._processor = trainer, processor

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Diagnose where the step is one of those asked for; in the first process only."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if not due or not state.is_world_process_zero:
            return
        if self._trainer is None or self._processor is None:
            raise TrainingError("a PrismCallback that was never attached", needed="`train`, which attaches it")
        model = copy.deepcopy(kwargs["model"].lm)
        with kept_randomness(0):
            values = self.diagnose(load((merged(model), self._processor)))
        self._trainer.log({PREFIX + name: float(value) for name, value in values.items()})
