"""The commands that make and convert models; training's libraries are loaded only when one of them is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prismlens.cli.output import bars
from prismlens.data.load import load_items
from prismlens.errors import TrainingError
from prismlens.models.convert import convert as run_convert
from prismlens.monitor import monitor


def train(
    variant: Annotated[str, typer.Argument(help="lvr, n-lvr, d-lvr, p-lvr-2, p-lvr-3, sft, ce-only, ...")],
    out: Annotated[Path, typer.Option(help="a new folder for the model")],
    base: Annotated[str, typer.Option(help="a shipped model, a local folder, or a hub id")] = "tiny/base",
    items: Annotated[str, typer.Option(help="shapes, viscot:FILE, or vstar:DIR")] = "shapes",
    protocol: Annotated[str, typer.Option(help="fair (corrected) or paper (as released)")] = "fair",
    flip: Annotated[
        list[str] | None, typer.Option(help="one difference of the protocols, e.g. align_mean=published")
    ] = None,
    run: Annotated[str | None, typer.Option(help="tiny or paper: which defaults; tiny for a tiny/ base")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    lam: Annotated[float | None, typer.Option(help="lambda of the alignment loss")] = None,
    latent_steps: Annotated[int | None, typer.Option(help="K, latents in the block")] = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    batch: Annotated[int | None, typer.Option(help="packs an optimiser step, over all processes")] = None,
    accumulate: Annotated[int | None, typer.Option(help="micro-batches an optimiser step")] = None,
    pack_items: Annotated[int | None, typer.Option(help="at most so many items a pack")] = None,
    pack_tokens: Annotated[int | None, typer.Option(help="at most so many tokens a pack")] = None,
    seed: Annotated[int | None, typer.Option(help="of batches, noise and new weights")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints")] = None,
    lora: Annotated[int | None, typer.Option(help="rank of a LoRA fine-tuning; full when left out")] = None,
    bf16: Annotated[bool | None, typer.Option(help="bfloat16 autocast")] = None,
    gradient_checkpointing: bool = False,
    cache: Annotated[Path | None, typer.Option(help="folder for the frozen tower's outputs")] = None,
    image_root: Annotated[Path | None, typer.Option(help="what image paths are relative to")] = None,
    on_bad: Annotated[str, typer.Option(help="for bad rows of a file: raise or drop")] = "raise",
    emitted: Annotated[bool, typer.Option(help="the model writes the block's start marker itself")] = False,
    report: Annotated[list[str] | None, typer.Option(help="for example tensorboard")] = None,
    logs: Annotated[Path | None, typer.Option(help="folder of the reports")] = None,
    prism_every: Annotated[int, typer.Option(help="run the diagnostics every so many steps; 0: never")] = 0,
    prism_n: Annotated[int, typer.Option(help="held-out scenes of the diagnostics")] = 64,
    fsdp_config: Annotated[Path | None, typer.Option(help="FSDP by transformers' JSON config")] = None,
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed by its JSON config")] = None,
) -> None:
    """Train a VARIANT from a base. The same command again goes on where a run was interrupted.

    Example: prismlens train n-lvr --base tiny/base --items shapes --out runs/n-lvr
    """
    given = {
        "steps": steps, "lam": lam, "latent_steps": latent_steps, "lr": lr, "batch": batch, "accumulate": accumulate,
        "pack_items": pack_items, "pack_tokens": pack_tokens, "seed": seed, "save_every": save_every, "lora": lora,
        "bf16": bf16, "gradient_checkpointing": gradient_checkpointing or None,
        # Throw-away heads know rendered scenes only.
        "facts": None if items == "shapes" else 0.0,
    }  # fmt: skip
    commands, training, callback = _training()
    run = run or ("tiny" if base.startswith("tiny/") else "paper")
    source = commands.source_of(items, cache, image_root=image_root, on_bad=on_bad, writes_start=emitted)
    watched = monitor(load_items("shapes", n=prism_n)) if prism_every else None
    done = training.train(
        variant, base, source, out, settings=commands.settings_of(run, protocol, flip or [], given),
        report_to=report or (), logs=logs, progress=bars(),
        callbacks=[callback.PrismCallback(watched, prism_every)] if watched else [],
        **commands.sharding(fsdp_config, deepspeed),
    )  # fmt: skip
    typer.echo(f"saved in {done.folder}")


def convert(
    source: Annotated[str, typer.Argument(help="a shipped model, a local folder, or a hub id")],
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    to: Annotated[str, typer.Option(help="prismlens, or released (the QwenWithLVR layout)")] = "prismlens",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; else the source's own")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="for example 5GB")] = None,
) -> None:
    """Rewrite the model SOURCE in another format, into FOLDER.

    Example: prismlens convert tiny/lvr released-lvr --to released
    """
    typer.echo(f"saved in {run_convert(source, folder, to=to, dtype=dtype, max_shard_size=max_shard_size)}")


def build_zoo(names: list[str], out: Path, seed: int, processes: int) -> None:
    """Train shipped models again."""
    _training()
    from prismlens.training import zoo

    for folder in zoo.build_all(names or list(zoo.SHIPPED), zoo.Recipe(out, seed), processes=processes):
        typer.echo(f"saved in {folder}")


def _training() -> tuple[Any, Any, Any]:
    """The training modules, or an error that says which extra they need."""
    try:
        from prismlens.training import callback, commands, train
    except ImportError as error:
        raise TrainingError(
            f"training needs {error.name}, which is not installed",
            needed="the training libraries",
            fix="pip install 'prismlens[train]'",
        ) from error
    return commands, train, callback
