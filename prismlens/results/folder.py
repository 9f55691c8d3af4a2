"""A folder that is written whole or not at all; knows the names of its files and not what they hold."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from prismlens.errors import ResultsError

ROWS, MANIFEST = "rows.jsonl", "manifest.json"


def check_free(target: Path) -> None:
    """Raise a ResultsError unless nothing, or an empty folder, is at the target."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    held = "saved results" if (target / MANIFEST).exists() else "other files" if target.is_dir() else "a file's content"
    raise ResultsError(
        f"{target} already holds {held}", needed="a new or an empty folder", fix="choose another, or remove it yourself"
    )


def write_whole(target: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a sibling folder, down to the disk, and only then give it the target's name.

    Args:
        target: nothing, or an empty folder.
        files: name -> content; a name may have folders in it (``"alignment/rows.jsonl"``).

    Raises:
        ResultsError: the target cannot be written, or was filled meanwhile.
    """
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        part.mkdir(parents=True)
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in {(part / name).parent for name in files} | {part}:
            _sync_folder(folder)
        os.replace(part, target)  # fails where another process has filled the target meanwhile
        _sync_folder(target.parent)
    except OSError as error:
        raise ResultsError(f"{target} could not be written: {error}", fix="check space and permissions") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # gone already where it took the target's name


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> bytes:
    """The content of a file, or a ResultsError that says which one cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be read: {error.strerror}",
            needed=f"a folder with {ROWS} and {MANIFEST}",
            fix="check the path",
        ) from error
