"""What a run leaves on disk while it goes on: its identity, its checkpoints; and how it is resumed or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlens.errors import TrainingError
from prismlens.training.trainer import drop_broken_checkpoints, last_checkpoint

IDENTITY = "run.json"
SUFFIX = ".partial"


def working_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints until its model is written: beside the model's folder."""
    return out.with_name(out.name + SUFFIX)


def open_run(out: Path, identity: Mapping[str, Any]) -> tuple[Path, Path | None, list[str]]:
    """The working folder of a run, the checkpoint to go on from (None for a new run), and broken ones removed.

    Args:
        out: the folder that the model will be written to.
        identity: everything that decides the result, as JSON values.

    Raises:
        TrainingError: `out` is there already, or the working folder belongs to a run with another identity; the
            message lists what differs.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(
            f"{str(out)!r} exists and is not an empty folder",
            needed="a new folder",
            cause="the run is finished already, or the name is taken",
            fix="choose another name, or remove it",
        )
    folder = working_folder(out)
    wanted = json.loads(json.dumps(identity, sort_keys=True))
    path = folder / IDENTITY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n")
        os.replace(draft, path)
        return folder, None, []
    found = json.loads(path.read_text())
    differing = differences(found, wanted)
    if differing:
        raise TrainingError(
            f"{str(folder)!r} belongs to another run: " + "; ".join(differing[:12]),
            needed="the same variant, settings, base and items",
            cause="the command was changed after the run was interrupted",
            fix="repeat the first command, choose another folder, or remove this one to start anew",
        )
    return folder, last_checkpoint(folder), drop_broken_checkpoints(folder)


def differences(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, one line a place: ``settings.lr: 0.001 there, 0.002 now``."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [
            line
            for key in keys
            for line in differences(found.get(key, "(none)"), wanted.get(key, "(none)"), f"{at}.{key}" if at else key)
        ]
    return [] if found == wanted else [f"{at}: {found!r} there, {wanted!r} now"]
