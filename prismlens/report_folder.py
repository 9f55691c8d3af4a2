"""A report as one folder of checked parts, and back; knows the parts and not what they mean."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prismlens.alignment import Alignment
from prismlens.corruption import CorruptionTest
from prismlens.decodability import Decodability
from prismlens.errors import ResultsError
from prismlens.results import MANIFEST, Results, check_free, write_whole

ALIGNMENT, DECODABILITY, KEY = "alignment", "decodability", "report"
SAVED_WITHOUT = "the folder was saved without it"


def save(
    folder: str | Path, about: Mapping[str, Any], corruption: CorruptionTest, near: Alignment | None,
    map_: Decodability | None,
) -> Path:  # fmt: skip
    """Write all parts into a new folder, whole or not at all; returns its full path.

    The folder itself is a saved corruption test; the other parts are folders in it. Every part's manifest has the
    checksum of its rows, and the outer manifest that of every inner one.

    Args:
        folder: new or empty.
        about: the report's own values, as JSON.
        corruption, near, map_: the parts; None for one that is not there.

    Raises:
        ResultsError: the path holds something, or cannot be written.
    """
    target = Path(folder).expanduser().resolve()
    check_free(target)
    parts = {} if near is None else _alignment_parts(near)
    parts |= {} if map_ is None else {DECODABILITY: map_.stored()}
    files = {f"{part}/{name}": content for part, one in parts.items() for name, content in one.files().items()}
    sums = {part: hashlib.sha256(files[f"{part}/{MANIFEST}"]).hexdigest() for part in parts}
    outer = corruption.stored()
    whole = Results(outer.rows, {**outer.manifest, KEY: {**about, "parts": sums}})
    write_whole(target, {**files, **whole.files()})
    return target


def load(folder: str | Path) -> tuple[dict[str, Any], CorruptionTest, Alignment | None, Decodability | None]:
    """Read back what `save` wrote; of a saved corruption test the other parts are None, and ``missing`` says so.

    Raises:
        ResultsError: a file is missing, cut short, or changed since it was saved.
    """
    source = Path(folder).expanduser().resolve()
    corruption = CorruptionTest.load(source)
    about = corruption.results.manifest.pop(KEY, None)
    if about is None:
        return {"missing": dict.fromkeys((ALIGNMENT, DECODABILITY), SAVED_WITHOUT)}, corruption, None, None
    sums = about.pop("parts")
    for part, expected in sums.items():
        _check(source / part / MANIFEST, expected)
    near = _alignment(source, [part for part in sums if part.startswith(f"{ALIGNMENT}/")])
    return about, corruption, near, Decodability.load(source / DECODABILITY) if DECODABILITY in sums else None


def _check(path: Path, expected: str) -> None:
    """A ResultsError unless the file is the one that was saved."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be read: {error.strerror}",
            needed="every part that the report's manifest names",
            cause="a copy stopped early, or a folder was removed",
            fix="copy the whole folder again",
        ) from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise ResultsError(
            f"{path} is not the file that was saved with the report: its sha256 differs",
            cause="it was cut short, edited, or comes from another report",
            fix="copy the whole folder again",
        )


def _alignment_parts(near: Alignment) -> dict[str, Results]:
    """Each table of an alignment as results of its own; its settings stand in the manifest of the rows."""
    values = {field.name: getattr(near, field.name) for field in dataclasses.fields(near)}
    tables = {name: value for name, value in values.items() if isinstance(value, pd.DataFrame)}
    settings = {name: value for name, value in values.items() if name not in tables}
    return {
        f"{ALIGNMENT}/{name}": Results(table, {ALIGNMENT: settings if name == "rows" else {}})
        for name, table in tables.items()
    }


def _alignment(source: Path, parts: list[str]) -> Alignment | None:
    """The alignment of these parts; None where there are none."""
    if not parts:
        return None
    stored = {Path(part).name: Results.load(source / part) for part in parts}
    settings = dict(stored["rows"].manifest[ALIGNMENT])
    settings["left_out"] = tuple(settings["left_out"])
    return Alignment(**{name: one.rows for name, one in stored.items()}, **settings)
