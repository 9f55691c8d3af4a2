"""Finished parts of a sweep by name, in memory or in a folder that outlives the process; does not look into them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from prismlens.errors import ResultsError

PLAN, PARTS, RESULTS = "plan.json", "parts", "results"
SHOWN = 200
"""Characters of a value that an error shows."""


@dataclass(frozen=True)
class InMemory:
    """Parts that are gone with the process."""

    parts: dict[str, bytes] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the part is finished."""
        return name in self.parts

    def get(self, name: str) -> bytes:
        """A finished part."""
        return self.parts[name]

    def put(self, name: str, content: bytes) -> None:
        """Keep a finished part."""
        self.parts[name] = content


@dataclass(frozen=True)
class InFolder:
    """Parts as files: ``plan.json``, ``parts/NAME``, and at the end ``results/`` in their place."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether the part is finished."""
        return (self.folder / PARTS / name).exists()

    def get(self, name: str) -> bytes:
        """A finished part."""
        return (self.folder / PARTS / name).read_bytes()

    def put(self, name: str, content: bytes) -> None:
        """Write the part under another name, down to the disk, and only then give it its own."""
        write_whole(self.folder / PARTS / name, content)

    @property
    def results(self) -> Path:
        """Where the merged results lie once all parts are there."""
        return self.folder / RESULTS

    def claim(self, plan: dict[str, Any]) -> None:
        """Begin under a plan, or go on under the same one.

        Raises:
            ResultsError: the folder holds something else, or a sweep under another plan.
        """
        path = self.folder / PLAN
        if path.exists():
            self.require(plan)
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            held = [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else ["a file"]
            if any(not name.startswith(f".{PLAN}.") for name in held if name != PARTS):
                raise ResultsError(
                    f"{self.folder} is not the folder of a sweep: it holds {', '.join(sorted(held)[:5])}",
                    needed="a new or an empty folder, or one in which a sweep was begun",
                )
        write_whole(path, (json.dumps(plan, indent=1) + "\n").encode())

    def require(self, plan: dict[str, Any]) -> None:
        """Raise a ResultsError, with the differences, unless the folder's plan is this one."""
        try:
            before = json.loads((self.folder / PLAN).read_bytes())
        except (OSError, ValueError) as error:
            raise ResultsError(f"{self.folder / PLAN} cannot be read: {error}", fix="choose another folder") from error
        now = json.loads(json.dumps(plan))
        found = differences(before, now)
        if found:
            raise ResultsError(
                f"{self.folder} was begun under another plan: {'; '.join(found)}",
                needed="the same model, items, conditions, settings and versions",
                cause="parts of two different sweeps would be mixed",
                fix="choose a new folder, or run as before",
            )

    def clear(self) -> None:
        """Remove the parts, which are in the results now, and what a kill has left of files half-written."""
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        for left in (*self.folder.glob(f".{PLAN}.*"), *self.folder.glob(f".{RESULTS}.*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


Shards: TypeAlias = InMemory | InFolder
"""Where finished parts are kept."""


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, a text each: ``key: before -> now``."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        absent = "nothing"
        return [
            text
            for name in names
            for text in differences(before.get(name, absent), now.get(name, absent), f"{where}{name}.")
        ]
    return [] if before == now else [f"{where.rstrip('.')}: {_short(before)} -> {_short(now)}"]


def write_whole(path: Path, content: bytes) -> None:
    """A file that appears with all its content or not at all, also where the machine stops.

    Raises:
        ResultsError: it could not be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise ResultsError(f"{path} could not be written: {error}", fix="check space and permissions") from error
    finally:
        part.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
