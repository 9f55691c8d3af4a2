"""Files and folders that appear whole or not at all; knows nothing of what is in them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prismlens.errors import ResultsError


def check_free(target: Path) -> None:
    """Raise a ResultsError unless nothing, or an empty folder, is at the target."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ResultsError(
            f"{target} exists and is not an empty folder", needed="a new or an empty folder", fix="choose another"
        )


def place(draft: Path, target: Path) -> None:
    """Bring a file or a folder to the disk, and only then give it the target's name."""
    for path in (*draft.rglob("*"), draft) if draft.is_dir() else (draft,):
        sync(path)
    os.replace(draft, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft folder beside the target, which takes the target's name if the block ends well and else vanishes.

    Raises:
        ResultsError: something is at the target, or the disk refuses.
    """
    check_free(target)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        draft.mkdir(parents=True)
        yield draft
        place(draft, target)  # fails where another process has filled the target meanwhile
    except OSError as error:
        raise ResultsError(f"{target} could not be written: {error}", fix="check space and permissions") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
