"""One training run from a base to a folder: prepare, train (or go on), save; the story, told by other files' parts."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback

from prismlens.errors import SettingError, TrainingError
from prismlens.models.checkpoint import load_checkpoint, save_checkpoint, weight_hash
from prismlens.models.latent import LatentModel
from prismlens.models.processor import LVRProcessor
from prismlens.models.stages import stage_names
from prismlens.results import environment_manifest
from prismlens.training.callback import PrismCallback
from prismlens.training.inputs import WAVES
from prismlens.training.layout import collate
from prismlens.training.lora import add_lora, merged
from prismlens.training.module import TrainingModule
from prismlens.training.prepare import Prepared, prepare
from prismlens.training.randomness import kept_randomness
from prismlens.training.run_folder import open_run, working_folder
from prismlens.training.settings import PAPER_RUN, TINY_RUN, TrainSettings
from prismlens.training.sources import Source
from prismlens.training.trainer import make_trainer
from prismlens.training.variants import VARIANTS, Variant

logger = logging.getLogger(__name__)

Base = str | Path | tuple[LatentModel, LVRProcessor]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run.

    Args:
        folder: where the model lies, ``training.json`` beside it.
        log: one line every `log_every` steps: ``step``, ``loss``, its terms, ``learning_rate``, ``grad_norm``, and what
            callbacks logged.
    """

    folder: Path
    log: tuple[dict[str, Any], ...]


def train(
    variant: str | Variant,
    base: Base,
    source: Source,
    out: str | Path,
    *,
    settings: TrainSettings | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: Sequence[str] = (),
    logs: str | Path | None = None,
    progress: bool = True,
    **extra: Any,
) -> Trained:
    """Train a variant and write its folder; a run that was interrupted goes on when the same call is repeated.

    Args:
        variant: a name from `VARIANTS`, or your own.
        base: ``"tiny/base"``, a local folder or hub id of a Qwen2.5-VL, or a model with its processor.
        source: the data: `SceneSource` for rendered scenes, `ItemSource` for items with boxes.
        out: a new folder. Checkpoints lie in ``<out>.partial`` until the model is written.
        settings: numbers and protocol; by default those of the shipped models for a ``tiny/`` base, and those of the
            paper for any other.
        callbacks: of transformers, such as `PrismCallback`.
        report_to: for example ``("tensorboard",)``; `logs` is where.
        logs: folder for reports, ``<out>.logs`` by default.
        progress: show bars.
        extra: further `transformers.TrainingArguments`, such as ``fsdp`` or ``deepspeed``.

    Raises:
        TrainingError: the folder is taken, the run that lies there is another one, the loss is not finite, or a
            library that was asked for is missing.
        SettingError, ItemError, CheckpointError: see the parts.
    """
    started = time.monotonic()
    out = Path(out)
    chosen = _variant(variant)
    settings = settings or (TINY_RUN if str(base).startswith("tiny/") else PAPER_RUN)
    chosen = chosen if settings.steps is None else chosen.scaled(settings.steps)
    # The trainer takes as many packs a step as the data counts to a step, or phases would begin at the wrong one.
    settings = settings if chosen.batch is None else replace(settings, batch=chosen.batch)
    parent, processor = base if isinstance(base, tuple) else load_checkpoint(base)
    identity = {
        "variant": asdict(chosen), "settings": settings.as_dict(), "base": weight_hash(parent),
        "source": source.identity(),
    }  # fmt: skip
    with kept_randomness(settings.seed):
        ready = prepare(
            parent, processor, chosen, latent_steps=settings.latent_steps, protocol=settings.protocol,
            emitted=source.writes_start,
        )  # fmt: skip
        module, log = _run(ready, chosen, settings, source, out, identity, {
            "callbacks": callbacks, "report_to": report_to, "progress": progress,
            "logs": Path(logs) if logs is not None else out.with_name(out.name + ".logs"), **extra,
        })  # fmt: skip
    manifest = {
        **_name(base), **identity, "added_tokens": list(ready.added), "mechanism": chosen.mechanism, "log": log,
        "minutes": round((time.monotonic() - started) / 60, 1), "environment": environment_manifest(),
    }  # fmt: skip
    _finish(module, ready, out, manifest)
    return Trained(out, tuple(log))


def _run(
    ready: Prepared,
    variant: Variant,
    settings: TrainSettings,
    source: Source,
    out: Path,
    identity: dict[str, Any],
    how: dict[str, Any],
) -> tuple[TrainingModule, list[dict[str, Any]]]:
    """Open or resume the run's folder, train in place, and return the module with its log."""
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        folder, checkpoint, broken = open_run(out, identity)
    if state.is_main_process:
        _announce(variant, settings, state.num_processes, checkpoint, broken, shown=how["progress"])
    model = add_lora(ready.model, settings.lora) if settings.lora else ready.model
    if settings.gradient_checkpointing:
        _refuse_cached(variant)
        model.activation_checkpointing_enable({"use_reentrant": False})
    module = TrainingModule(model, variant, settings)
    with state.main_process_first():
        data = source.packs(ready, variant, settings)
    config = ready.model.config
    lay_out = partial(
        collate, width=config.text.hidden_size, waves=_in_waves(variant), stage_names=stage_names(cast(Any, config)),
        free_id=config.free_id, other=variant.target == "other",
    )  # fmt: skip
    how = {**how, "progress": how["progress"] and state.is_main_process}
    trainer = make_trainer(module, data, lay_out, folder, settings, **how)
    for callback in how["callbacks"]:
        if isinstance(callback, PrismCallback):
            callback.attach(trainer, ready.processor)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        module.eval()
    return module, trainer.state.log_history


def _announce(
    variant: Variant,
    settings: TrainSettings,
    processes: int,
    checkpoint: Path | None,
    broken: list[str],
    *,
    shown: bool,
) -> None:
    """What is about to happen, in a line: launchers differ in how many processes they really start."""
    line = (
        f"{variant.name}: {variant.steps} steps of {settings.batch} packs, processes: {processes}"
        + (f", going on from {checkpoint.name}" if checkpoint else "")
        + (f"; removed what a kill had left half-written: {', '.join(broken)}" if broken else "")
    )
    logger.info(line)
    if shown:
        tqdm.write(line, file=sys.stderr)


def _finish(module: TrainingModule, ready: Prepared, out: Path, manifest: dict[str, Any]) -> None:
    """Write the model's folder and remove the working one, in the first process alone."""
    if not PartialState().is_main_process:
        return
    save_checkpoint(merged(module.lm), ready.processor, out, manifest=manifest)
    shutil.rmtree(working_folder(out), ignore_errors=True)


def _variant(variant: str | Variant) -> Variant:
    if isinstance(variant, Variant):
        return variant
    if variant not in VARIANTS:
        raise SettingError(
            f"no variant is called {variant!r}", needed=f"one of {', '.join(VARIANTS)}, or a Variant of your own"
        )
    return VARIANTS[variant]


def _in_waves(variant: Variant) -> bool:
    """Whether some phase unrolls the model's own latents."""
    return any(phase.inputs in WAVES for phase in variant.phases)


def _refuse_cached(variant: Variant) -> None:
    if _in_waves(variant):
        raise TrainingError(
            f"gradient checkpointing with {variant.name!r}",
            needed="a variant that is trained with teacher forcing",
            cause="a model that is trained through its own latents needs the cache that checkpointing turns off",
            fix="leave gradient_checkpointing out",
        )


def _name(base: Base) -> dict[str, str]:
    return {"parent": "(given)" if isinstance(base, tuple) else str(base)}
