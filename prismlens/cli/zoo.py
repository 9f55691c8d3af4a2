"""`prismlens zoo`: the shipped models, listed or built again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prismlens.cli.output import Json, emit, grid, text_of
from prismlens.cli.training import build_zoo
from prismlens.errors import SettingError
from prismlens.models.checkpoint import zoo_manifest, zoo_names


def zoo(
    names: Annotated[list[str] | None, typer.Argument(help="models to build; all of them by default")] = None,
    build: Annotated[bool, typer.Option("--build", help="train them again instead of listing them")] = False,
    out: Annotated[Path, typer.Option(help="with --build: receives one folder a model")] = Path("runs/zoo"),
    seed: Annotated[int, typer.Option(help="with --build: of batches and new weights")] = 0,
    processes: Annotated[int, typer.Option(help="with --build: models trained side by side")] = 2,
    as_json: Json = False,
) -> None:
    """List the shipped models, how they were made, and how often they are right; or build them again.

    Example: prismlens zoo --build lvr n-lvr --out runs/zoo
    """
    if build:
        if as_json:
            raise SettingError("--build with --json", needed="one of them", cause="--json is for the list")
        build_zoo(names or [], out, seed, processes)
        return
    if names:
        raise SettingError(f"prismlens zoo {' '.join(names)}", needed="--build before names of models")
    models = [{"name": name, **_known(zoo_manifest(name))} for name in zoo_names()]
    if as_json:
        emit({"models": models})
        return
    table = grid("model", "what is known about it", "held-out accuracy", "steps from", words=2)
    for one in models:
        accuracy, (low, high) = one["accuracy"], one["interval"]
        steps = f"{one['steps']} {one['parent'].removeprefix('tiny/')}"
        table.add_row(one["name"], one["mechanism"], f"{accuracy:.3f} [{low:.3f}, {high:.3f}]", steps)
    typer.echo(text_of(table))


def _known(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the list says of one model."""
    accuracy, *interval = manifest["accuracy"]["all"]
    return {
        "mechanism": str(manifest["mechanism"]), "accuracy": accuracy, "interval": interval,
        "steps": manifest["steps"], "parent": str(manifest.get("parent", "scratch")),
    }  # fmt: skip
