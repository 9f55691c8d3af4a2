"""The recipe of the shipped models: base from scratch, then every variant from the base; one command, seeded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prismlens.data.shapes import shapes
from prismlens.errors import SettingError, TrainingError
from prismlens.models.checkpoint import MANIFEST, load_checkpoint, save_checkpoint
from prismlens.models.latent import LatentModel
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.stats import cluster_mean_interval
from prismlens.trace import PrismModel, load
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.training.protocol import PROTOCOLS
from prismlens.training.settings import TINY_RUN, TrainSettings
from prismlens.training.sources import SceneSource
from prismlens.training.tower import train_tower
from prismlens.training.train import train
from prismlens.training.variants import BASE, VARIANTS, Variant

TOWER_STEPS, HELD_OUT = 1500, 500
"""Optimiser steps of the vision tower, and held-out items that accuracy is measured on."""
SHIPPED = (BASE.name, *(name for name, variant in VARIANTS.items() if variant.ships))


@dataclass(frozen=True)
class Recipe:
    """What is built, and how.

    Args:
        out: receives one folder a model.
        seed: of weights, scenes and batches; the base and its scenes always have seed 0, as published runs share one
            base.
        protocol: ``"fair"`` or ``"paper"``.
        lam: lambda of the alignment loss.
        steps: of every variant, where another number than its own is wanted.
        parents: folder or ``tiny/`` that parents are read from; `out` by default.
    """

    out: Path
    seed: int = 0
    protocol: str = "fair"
    lam: float = TINY_RUN.lam
    steps: int | None = None
    parents: str | None = None

    def parent(self, name: str) -> str:
        """Where the parent of that name lies."""
        return f"{self.parents.rstrip('/')}/{name}" if self.parents else str(self.out / name)

    @property
    def settings(self) -> TrainSettings:
        """The settings of the tiny runs with what the recipe says."""
        return replace(TINY_RUN, seed=self.seed, lam=self.lam, steps=self.steps, protocol=PROTOCOLS[self.protocol])


def build(name: str, recipe: Recipe) -> Path:
    """Train one model and write its folder, with ``training.json`` beside the weights.

    The run uses one thread, so that the same command on the same machine gives the same weights; interrupted, it goes
    on when it is started again.

    Raises:
        SettingError: no such variant.
        TrainingError: the folder exists already.
        CheckpointError: the base is missing.
    """
    if name not in (BASE.name, *VARIANTS):
        raise SettingError(f"no variant is called {name!r}", needed=f"one of {', '.join((BASE.name, *VARIANTS))}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        variant = BASE if name == BASE.name else VARIANTS[name]
        draft = recipe.out / f".{name}"
        if not (draft / MANIFEST).exists():
            base = _fresh(recipe) if variant is BASE else load_checkpoint(recipe.parent(variant.parent))
            train(variant, base, SceneSource(cache=recipe.out / ".features"), draft, settings=recipe.settings)
        return _ship(draft, recipe.out / name, variant, recipe)
    finally:
        torch.set_num_threads(threads)


def build_all(names: Sequence[str], recipe: Recipe, *, processes: int = 1) -> list[Path]:
    """Build several models, the base first, then the others in processes of one thread each.

    Raises:
        TrainingError: some were not built; names them and shows the end of their output.
    """
    wanted = [name for name in names if not (recipe.out / name / MANIFEST).exists()]
    if BASE.name in wanted:
        build(BASE.name, recipe)
    waiting = [name for name in wanted if name != BASE.name]
    with ThreadPoolExecutor(processes) as pool:
        failed = [line for line in pool.map(lambda name: _in_process(name, recipe), waiting) if line]
    if failed:
        raise TrainingError(
            "\n".join(failed), needed="every model built", fix="repeat the command: what is built already is kept"
        )
    return [recipe.out / name for name in names]


def held_out_accuracy(model: PrismModel) -> dict[str, Any]:
    """Free-running accuracy on scenes that training never drew, overall and by category, each with its interval."""
    items = shapes(HELD_OUT, split="test", seed=1)
    run = model.generate(items, progress=True)
    out = {}
    for category in ("all", *sorted({item.category for item in items})):
        picked = [i for i, item in enumerate(items) if category in ("all", item.category)]
        interval = cluster_mean_interval(
            [bool(run.correct[i]) for i in picked], [items[i].group for i in picked], seed=0
        )
        out[category] = [round(value, 4) for value in (interval.estimate, interval.low, interval.high)]
    return {"accuracy": out, "n_held_out": HELD_OUT, "items_without_latents": len(run.without_latents)}


def _in_process(name: str, recipe: Recipe) -> str:
    """Build one model in a process of its own; the end of its output where it failed, else nothing."""
    command = [
        sys.executable, "-m", "prismlens.training.zoo", name, json.dumps({
            "out": str(recipe.out), "seed": recipe.seed, "protocol": recipe.protocol, "lam": recipe.lam,
            "steps": recipe.steps, "parents": recipe.parents,
        }),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return "" if done.returncode == 0 else f"{name}: {done.stderr.strip()[-1500:]}"


def _fresh(recipe: Recipe) -> tuple[LatentModel, LVRProcessor]:
    """A new model whose tower has had its lesson, kept on disk so that an interrupted base need not repeat it."""
    folder = recipe.out / ".tower"
    if not folder.exists():
        processor = tiny_processor(start=False)
        model = LVRForConditionalGeneration(tiny_config(processor.tokenizer, latent_entry="none"))
        initialise(model, 0)
        score = train_tower(model, processor, steps=TOWER_STEPS, seed=0)
        save_checkpoint(model, processor, folder, manifest={"steps": TOWER_STEPS, "token_accuracy": round(score, 4)})
    return load_checkpoint(folder)


def _ship(draft: Path, folder: Path, variant: Variant, recipe: Recipe) -> Path:
    """The finished model in half precision, measured as it is shipped."""
    model, processor = load_checkpoint(draft)
    half = draft.with_name(draft.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    save_checkpoint(model.half(), processor, half)
    notes = json.loads((draft / MANIFEST).read_text())
    tower = recipe.out / ".tower" / MANIFEST
    manifest = {
        "name": f"tiny/{variant.name}",
        "mechanism": variant.mechanism,
        "command": f"prismlens zoo --build {variant.name} --seed {recipe.seed}",
        "seed": recipe.seed,
        "steps": notes["settings"]["steps"] or variant.steps,
        **{key: notes[key] for key in ("variant", "settings", "source", "base", "environment")},
        **({"tower": json.loads(tower.read_text())} if variant is BASE else {"parent": variant.parent}),
        "latent_steps": 0 if not variant.stages else recipe.settings.latent_steps,
        "final_losses": next(line for line in reversed(notes["log"]) if "loss" in line),
        **held_out_accuracy(load(half)),
        "minutes": notes["minutes"],
    }
    (half / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(half, folder)
    shutil.rmtree(draft)
    return folder


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    build(sys.argv[1], Recipe(**{**given, "out": Path(given["out"])}))
