"""A part of a report from its object or from a saved folder; draws nothing."""

from __future__ import annotations

from pathlib import Path

from prismlens.alignment import Alignment
from prismlens.decodability import Decodability
from prismlens.errors import ResultsError
from prismlens.report_folder import DECODABILITY, load


def saved_map(given: Decodability | str | Path) -> Decodability:
    """A map, that of a folder, or that of a report's folder."""
    if isinstance(given, Decodability):
        return given
    inner = Path(given).expanduser() / DECODABILITY
    return Decodability.load(inner if inner.is_dir() else given)


def saved_alignment(given: Alignment | str | Path) -> Alignment:
    """An alignment, or that of a report's folder.

    Raises:
        ResultsError: the folder's report has none.
    """
    if isinstance(given, Alignment):
        return given
    about, _, near, _ = load(given)
    if near is None:
        raise ResultsError(f"{str(given)!r} holds no alignment", needed="a report that has one", cause=str(about))
    return near
