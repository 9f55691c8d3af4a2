"""What surrounds the reading of files: explained errors and no progress bars; knows no format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from prismlens.errors import CheckpointError


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar, which a shipped model's few files need not have."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def explained(
    what: str,
    *,
    needed: str,
    cause: str = "a download cut short, files of another model, or no network for a hub id",
    fix: str = "fetch the folder again, and check that its files belong together",
) -> Iterator[None]:
    """Turn whatever transformers raises about damaged files into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file provokes anything: OSError, TypeError, SafetensorError, ...
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{what} could not be read: {first}", needed=needed, cause=cause, fix=fix) from error
