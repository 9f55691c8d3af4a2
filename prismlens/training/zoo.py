"""The recipe of the shipped models: base from scratch, then every variant from the base; one command, seeded."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from prismlens.data.shapes import shapes
from prismlens.errors import SettingError
from prismlens.models.checkpoint import load_checkpoint, save_checkpoint
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import END, LATENT_END, LVRProcessor, token_id
from prismlens.results import environment_manifest
from prismlens.stats import cluster_mean_interval
from prismlens.trace import PrismModel, load
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.training.fit import Pool, train
from prismlens.training.tower import sample_scenes, scene_features, train_tower
from prismlens.training.variants import BASE, LATENT_STEPS, VARIANTS, Variant

TOWER_STEPS, SCENES, HELD_OUT = 1500, 3000, 500
"""Optimiser steps of the vision tower, scenes of the training pool, and held-out items that accuracy is measured on."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="models to build; all of them by default")] = None,
    out: Annotated[Path, typer.Option(help="folder that receives one folder a model")] = Path("runs/zoo"),
    seed: Annotated[int, typer.Option(help="seed of weights, scenes and batches")] = 0,
) -> None:
    """Build the tiny models; the parent of each has to be built before it, or to be in the folder already."""
    for name in names or [BASE.name, *VARIANTS]:
        build(name, out, seed=seed)


def build(name: str, out: Path, *, seed: int = 0) -> Path:
    """Train one model and write its folder, with ``training.json`` beside the weights.

    The run uses one thread, so that the same command on the same machine gives the same weights.

    Raises:
        SettingError: no such variant.
        CheckpointError: the folder exists already, or the base is missing.
    """
    if name not in (BASE.name, *VARIANTS):
        raise SettingError(f"no variant is called {name!r}", needed=f"one of {', '.join((BASE.name, *VARIANTS))}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        variant = BASE if name == BASE.name else VARIANTS[name]
        model, processor, notes = _fresh(seed) if variant is BASE else _from_parent(out / variant.parent, variant)
        scenes = sample_scenes(SCENES, seed + 1)
        pool = Pool(scenes, scene_features(model, processor, scenes))
        log = train(model, processor, pool, variant, seed=seed)
        model.half().float()  # the shipped precision, so that what is measured is what is shipped
        manifest = {
            **_manifest(variant, seed, notes, log),
            **held_out_accuracy(load((model, processor))),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }
        save_checkpoint(model.half(), processor, out / name, manifest=manifest)
    finally:
        torch.set_num_threads(threads)
    return out / name


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


def _fresh(seed: int) -> tuple[LVRForConditionalGeneration, LVRProcessor, dict[str, Any]]:
    """A new model whose tower has had its lesson."""
    processor = tiny_processor(start=False)
    model = LVRForConditionalGeneration(
        tiny_config(processor.tokenizer, latent_entry="none", latent_steps=LATENT_STEPS)
    )
    initialise(model, seed)
    score = train_tower(model, processor, steps=TOWER_STEPS, seed=seed)
    model.requires_grad_(True)
    model.model.visual.requires_grad_(False)
    return model, processor, {"tower_steps": TOWER_STEPS, "tower_token_accuracy": round(score, 4)}


def _from_parent(folder: Path, variant: Variant) -> tuple[LVRForConditionalGeneration, LVRProcessor, dict[str, Any]]:
    """The parent's weights under the variant's configuration."""
    parent, _ = load_checkpoint(folder)
    processor = tiny_processor(start=variant.latents)
    close = [token_id(processor.tokenizer, token) for token in (LATENT_END, END)]
    config = tiny_config(
        processor.tokenizer,
        latent_steps=LATENT_STEPS,
        latent_entry="forced" if variant.latents else "none",
        latent_close=close if variant.latents else [],
        visibility=list(variant.visibility),
    )
    model = LVRForConditionalGeneration(config)
    model.load_state_dict(parent.state_dict())
    model.model.visual.requires_grad_(False)
    return model, processor, {"parent": variant.parent}


def _manifest(variant: Variant, seed: int, notes: dict[str, Any], log: list[dict[str, float]]) -> dict[str, Any]:
    """How the model came about."""
    return {
        "name": f"tiny/{variant.name}",
        "mechanism": variant.mechanism,
        "command": f"python -m prismlens.training.zoo {variant.name} --seed {seed}",
        "seed": seed,
        "steps": sum(lesson.steps for lesson in variant.lessons),
        "lessons": [asdict(lesson) for lesson in variant.lessons],
        "latent_steps": LATENT_STEPS if variant.latents else 0,
        "scenes": SCENES,
        **notes,
        "final_losses": log[-1],
        "environment": environment_manifest(),
    }


if __name__ == "__main__":
    app()
