"""Per-item rows and the manifest that says where they came from, on disk and back; knows nothing of what they mean."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prismlens.errors import ResultsError

FORMAT, VERSION = "prismlens-results", 1
ROWS, MANIFEST = "rows.jsonl", "manifest.json"
RECORDED = ("torch", "transformers", "nnsight", "numpy", "prismlens")
SPECIAL = "$float"
"""Key of the object that stands for a float JSON lacks: ``{"$float": "inf"}``, ``"-inf"`` or ``"nan"``."""
KEPT_DTYPES = frozenset(
    [
        *("bool", "boolean", "str", "string", "object", "float16", "float32", "float64"),
        *(f"{kind}{bits}" for kind in ("int", "uint", "Int", "UInt") for bits in (8, 16, 32, 64)),
    ]
)
"""The column types that come back from disk as they went."""


@dataclass(frozen=True, eq=False)
class Results:
    """Rows and manifest of one experiment.

    Both are copied and checked here, so that whatever exists can also be saved: in columns of Python objects, and in
    the manifest, tuples become lists and numpy numbers Python's. Rows are renumbered from 0.

    Args:
        rows: one row per item and condition; every table and picture is computed from these.
        manifest: JSON values that say how the rows came about (`environment_manifest`, model, settings, seeds).

    Raises:
        ResultsError: a column name, a column's type, or a value cannot be stored.
    """

    rows: pd.DataFrame
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _checked_rows(self.rows))
        manifest = _plain(self.manifest, "the manifest")
        try:
            json.dumps(manifest, allow_nan=False)
        except ValueError as error:
            raise ResultsError("the manifest holds NaN or infinity", needed="JSON values", fix="use None") from error
        object.__setattr__(self, "manifest", manifest)

    def frame(self) -> pd.DataFrame:
        """A copy of the rows."""
        return self.rows.copy(deep=True)

    def save(self, folder: str | Path) -> Path:
        """Write `rows.jsonl` and `manifest.json` into a new folder, all or nothing; returns its full path.

        Raises:
            ResultsError: the path is a file, or a folder that holds anything.
        """
        target = Path(folder).expanduser().resolve()
        check_free(target)
        rows = "".join(f"{line}\n" for line in _encoded(self.rows)).encode()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "rows": {"count": len(self.rows), "bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()},
            "columns": {name: str(dtype) for name, dtype in self.rows.dtypes.items()},
            "manifest": self.manifest,
        }
        text = json.dumps(about, indent=2, allow_nan=False) + "\n"
        _write_whole(target, {ROWS: rows, MANIFEST: text.encode()})
        return target

    @staticmethod
    def load(folder: str | Path) -> Results:
        """Read a saved folder back; values, order and column types are as they were.

        Raises:
            ResultsError: a file is missing, cut short, changed since it was saved, or of another version.
        """
        source = Path(folder).expanduser().resolve()
        about = _read_manifest(source / MANIFEST)
        rows = _read(source / ROWS)
        _check_rows_file(source / ROWS, rows, about["rows"])
        records = [json.loads(line, object_hook=_special_float) for line in rows.splitlines()]
        _check_records(source / MANIFEST, records, about)
        columns = {
            name: pd.Series([record[name] for record in records], dtype=dtype, index=range(len(records)))
            for name, dtype in about["columns"].items()
        }
        return Results(pd.DataFrame(columns, index=range(len(records))), about["manifest"])


def environment_manifest() -> dict[str, str | None]:
    """Versions of Python and of the libraries that decide the numbers (None where not installed), system, processor."""
    versions = {name: _version(name) for name in RECORDED}
    where = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), "platform": where, **versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checked_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """A renumbered copy whose every value can be stored, or a ResultsError that names the column."""
    if rows.index.nlevels > 1 or rows.index.name is not None:
        raise ResultsError(
            f"the rows have the index {rows.index.names}", needed="columns only", fix="call `.reset_index()` first"
        )
    names = list(rows.columns)
    if not all(isinstance(name, str) and name != SPECIAL for name in names) or len(set(names)) < len(names):
        raise ResultsError(f"the columns are {names}", needed=f"different names, all text, none of them {SPECIAL!r}")
    for name in names:
        if str(rows[name].dtype) not in KEPT_DTYPES:
            raise ResultsError(
                f"column {name!r} has the type {rows[name].dtype}",
                needed=f"one of {', '.join(sorted(KEPT_DTYPES))}",
                fix="convert it to text or to a number",
            )
    copy = rows.reset_index(drop=True)
    for name in names:
        if pd.api.types.is_object_dtype(copy[name].dtype):
            plain = [_plain(value, f"column {name!r}") for value in copy[name]]
            copy[name] = pd.Series(plain, dtype=object, index=copy.index)
    return copy


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's own types (and floats that JSON lacks), or a ResultsError that says where it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(entry, where) for entry in value]
    if isinstance(value, Mapping) and SPECIAL not in value and all(type(key) is str for key in value):
        return {key: _plain(entry, f"{where}, at {key!r}") for key, entry in value.items()}
    raise ResultsError(
        f"{where} holds {value!r} of the type {type(value).__name__}",
        needed=f"JSON values: text, numbers, booleans, None, lists, dicts with text as keys (but not {SPECIAL!r})",
        fix="convert it, for example with `.tolist()` or `str()`",
    )


def _encoded(rows: pd.DataFrame) -> list[str]:
    """One line of JSON per row; Python writes the shortest digits that read back as the same float."""
    columns = {name: [_storable(value, rows[name].dtype) for value in rows[name]] for name in rows.columns}
    return [
        json.dumps({name: column[i] for name, column in columns.items()}, allow_nan=False) for i in range(len(rows))
    ]


def _storable(value: Any, dtype: Any) -> Any:
    """The value for JSON: outside columns of Python objects a missing value is null, whatever pandas calls it."""
    if not pd.api.types.is_object_dtype(dtype):
        return None if pd.isna(value) else _tagged(value.item() if isinstance(value, np.generic) else value)
    return _tagged(value)


def _tagged(value: Any) -> Any:
    """The value with every float that JSON lacks replaced by its tagged name."""
    if isinstance(value, float) and not math.isfinite(value):
        return {SPECIAL: str(value)}
    if isinstance(value, list):
        return [_tagged(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _tagged(entry) for key, entry in value.items()}
    return value


def _special_float(value: dict[str, Any]) -> Any:
    """The float that a tagged name stands for; any other object as it is."""
    return float(value[SPECIAL]) if SPECIAL in value else value


def check_free(target: Path) -> None:
    """Raise a ResultsError unless nothing, or an empty folder, is at the target."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    held = "saved results" if (target / MANIFEST).exists() else "other files" if target.is_dir() else "a file's content"
    raise ResultsError(
        f"{target} already holds {held}", needed="a new or an empty folder", fix="choose another, or remove it yourself"
    )


def _write_whole(target: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a sibling folder, down to the disk, and only then give it the target's name."""
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        part.mkdir(parents=True)
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(part)
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be read: {error.strerror}",
            needed=f"a folder with {ROWS} and {MANIFEST}",
            fix="check the path",
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest file's content, of this format and version, with every field that loading needs."""
    try:
        about = json.loads(_read(path))
    except ValueError as error:
        raise ResultsError(
            f"{path} is not JSON: {error}", cause="the file was cut short, or edited", fix="copy the folder again"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ResultsError(f"{path} is not a manifest of saved results", needed=f'"format": "{FORMAT}"')
    if about.get("version") != VERSION:
        raise ResultsError(
            f"{path} has the version {about.get('version')!r}",
            needed=f"version {VERSION}",
            cause="it was written by another release of prismlens",
            fix="read it with that release",
        )
    missing = [name for name in ("rows", "columns", "manifest") if not isinstance(about.get(name), dict)]
    missing += [f"rows.{name}" for name in ("count", "bytes", "sha256") if not missing and name not in about["rows"]]
    if missing:
        raise ResultsError(f"{path} lacks {', '.join(missing)}", cause="the file was edited", fix="copy it again")
    return about


def _check_rows_file(path: Path, content: bytes, expected: Mapping[str, Any]) -> None:
    """Raise a ResultsError unless the rows are the bytes that were saved."""
    if len(content) < expected["bytes"]:
        raise ResultsError(
            f"{path} is cut short: {len(content)} of {expected['bytes']} bytes",
            cause="a copy or a download stopped early",
            fix="copy the folder again",
        )
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise ResultsError(
            f"{path} was changed after it was saved: its sha256 differs from the manifest's",
            fix="copy the folder again, or recompute the results",
        )


def _check_records(path: Path, records: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Raise a ResultsError unless the manifest's count and columns are those of the (unchanged) rows."""
    columns, count = about["columns"], about["rows"]["count"]
    if len(records) != count:
        raise ResultsError(f"{path} says {count} rows and there are {len(records)}", cause="the manifest was edited")
    strange = sorted(set(map(str, columns.values())) - KEPT_DTYPES)
    if strange or any(record.keys() != columns.keys() for record in records):
        raise ResultsError(
            f"{path} says the columns are {columns}, and the rows do not have these",
            cause="the manifest was edited",
            fix="copy the folder again",
        )
