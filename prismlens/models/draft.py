"""A folder that appears whole or not at all; knows nothing of models."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prismlens.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", *(f"os error {number})" for number in _FULL))
"""What libraries that do not raise OSError say of a full disk."""


@contextmanager
def draft(folder: str | Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into, which takes its name once the block ends without an error.

    Raises:
        CheckpointError: `folder` exists and is not an empty folder, or the disk is full. Whatever the error, the draft
            is removed and nothing is left under the name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{str(folder)!r} exists and is not an empty folder", needed="a new folder", fix="choose another name"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        made.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(made, folder)
    except BaseException as error:
        written = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        shutil.rmtree(made, ignore_errors=True)
        if not _is_full(error):
            raise
        raise CheckpointError(
            f"{str(folder)!r} could not be written: {_first_line(error)}",
            needed=f"more than {written:,} bytes, which is how far it came",
            cause="the disk is full, or a quota is used up",
            fix="free some space, or choose a folder on another disk; nothing was left behind",
        ) from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(words in str(error) for words in _FULL_WORDS)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
