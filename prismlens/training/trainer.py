"""Hugging Face's Trainer for latents: sums over whole optimiser steps, its own schedule, checkpoints that are whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from prismlens.errors import TrainingError
from prismlens.training.batch import Batch
from prismlens.training.module import TERMS, TrainingModule
from prismlens.training.schedule import rate
from prismlens.training.settings import TrainSettings

WEIGHTS, WHOLE = "model.safetensors", "whole"
"""A checkpoint's weights, and the file that is written last: without it the checkpoint is not whole."""


class LatentTrainer(Trainer):
    """Trains a `TrainingModule` on batches of packs.

    Every term of the loss is divided by its own count over the whole optimiser step (all micro-batches, all processes),
    so that neither accumulation nor the number of processes changes the loss.
    """

    model: TrainingModule

    def __init__(self, model: TrainingModule, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.loss_is_scaled_for_ga = True
        self._terms = torch.zeros(len(TERMS))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The step's micro-batches, and the count of every term over all of them and all processes."""
        samples = [next(epoch_iterator) for _ in range(num_batches)]
        counts = torch.stack([self.model.counts(sample["batch"]) for sample in samples]).sum(0).to(device)
        return samples, self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the terms' means over the optimiser step.

        Raises:
            TrainingError: it is not finite; names the step and the items of the batch.
        """
        batch: Batch = inputs["batch"]
        self._last_line = self.state.global_step if self._last_line is None else self._last_line
        means = model(batch) / num_items_in_batch.clamp(min=1)
        weights = torch.tensor(self.model.weights(batch.phase), device=means.device)
        loss = (weights * means).sum()
        if not bool(torch.isfinite(loss)):
            self._refuse_loss(loss, means, batch)
        self._terms += means.detach().cpu()
        # Processes are averaged by the wrapper, and each holds only its own share of the sum.
        return loss * self.args.world_size

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The variant's own schedule."""
        assert self.optimizer is not None
        factor = partial(rate, self.model.variant, self.model.settings.warm_up)
        self.lr_scheduler = LambdaLR(cast(Any, optimizer or self.optimizer), factor)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every weighted term since the last line."""
        if "loss" in logs:
            since = self.state.global_step - (self._last_line or 0)
            total = cast(Tensor, self.accelerator.reduce(self._terms.to(self.args.device), "sum")) / max(since, 1)
            shown = [name for name in TERMS if float(total[TERMS.index(name)]) != 0]
            logs |= {name: float(total[TERMS.index(name)]) for name in shown}
            self._last_line = self.state.global_step
            self._terms.zero_()
        super().log(logs, start_time)

    _last_line: int | None = None
    """The step of the last logged line, or of the checkpoint that the run went on from."""

    def _refuse_loss(self, loss: Tensor, means: Tensor, batch: Batch) -> None:
        items = sorted({item for row in batch.ids for item in row})
        kept = last_checkpoint(Path(str(self.args.output_dir)))
        terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(TERMS, means.tolist(), strict=True))
        raise TrainingError(
            f"the loss is {loss.item()} at step {self.state.global_step} ({terms})",
            needed="a finite loss",
            cause=f"too high a learning rate, or a damaged item among {', '.join(items[:50])}",
            fix=f"the last good checkpoint is {kept.name}" if kept else "no checkpoint had been written yet",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights with shared tensors written once; the sharded case is the parent's."""
        if state_dict is not None or output_dir is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            save_model(self.model, os.path.join(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every weight, or an error; the sharded case is the parent's."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.model, os.path.join(resume_from_checkpoint, WEIGHTS))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The parent's files, and then the sign that they are all there.

        Raises:
            TrainingError: they could not be written; the checkpoint before them is left as it is.
        """
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as a RuntimeError
            kept = last_checkpoint(Path(str(self.args.output_dir)))
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} could not be written: {error}",
                needed=f"room in {str(self.args.output_dir)!r}",
                cause="the disk is full, or the folder is gone",
                fix=f"make room and repeat the command: it goes on from {kept.name if kept else 'the start'}",
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / WHOLE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint of a run, or None."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and (p / WHOLE).exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_broken_checkpoints(folder: Path) -> list[str]:
    """Remove checkpoints that were being written when a run was killed; return their names."""
    broken = [path for path in folder.glob("checkpoint-*") if not (path / WHOLE).exists()]
    for path in broken:
        shutil.rmtree(path)
    return sorted(path.name for path in broken)


def make_trainer(
    module: TrainingModule,
    data: Any,
    collate: Callable[[Sequence[Any]], Batch],
    folder: Path,
    settings: TrainSettings,
    *,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    logs: Path | None = None,
    **extra: Any,
) -> LatentTrainer:
    """A trainer over `data` (packs by index, in order), with checkpoints in `folder`.

    Args:
        module, data, collate, folder, settings: what is trained, on what, how it is laid out, where it is kept.
        report_to: ``"tensorboard"`` and whatever else transformers reports to.
        callbacks: of transformers.
        progress: show a bar.
        logs: where reports go.
        extra: further `TrainingArguments`, such as ``fsdp`` or ``deepspeed``.
    """
    if logs is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_device, rest = divmod(settings.batch, settings.accumulate * world)
    if rest:
        raise TrainingError(
            f"batch = {settings.batch} over {world} processes and {settings.accumulate} micro-batches",
            needed="shares of equal size",
            fix="choose a batch that is a multiple of processes x micro-batches",
        )
    args = TrainingArguments(
        output_dir=str(folder), max_steps=module.variant.steps, per_device_train_batch_size=per_device,
        gradient_accumulation_steps=settings.accumulate, learning_rate=settings.lr,
        weight_decay=settings.weight_decay, adam_beta2=settings.beta2, max_grad_norm=settings.clip,
        save_strategy="steps", save_steps=settings.save_every, save_total_limit=2, logging_steps=settings.log_every,
        logging_first_step=True, logging_nan_inf_filter=False, report_to=list(report_to) or "none",
        train_sampling_strategy="sequential", remove_unused_columns=False, seed=settings.seed,
        disable_tqdm=not progress, use_cpu=not torch.cuda.is_available(), ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(), **extra,
    )  # fmt: skip
    return LatentTrainer(
        module, args, train_dataset=data, data_collator=lambda packs: {"batch": collate(packs)},
        callbacks=list(callbacks),
    )  # fmt: skip
