"""Reads a manifest file, and checks the rows beside it against it; knows nothing of what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlens.errors import ResultsError
from prismlens.results.folder import read
from prismlens.results.values import KEPT_DTYPES

FORMAT, VERSION = "prismlens-results", 1


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest file's content, of this format and version, with every field that loading needs."""
    text = read(path)  # its own errors are ValueErrors too, and say something else
    try:
        about = json.loads(text)
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


def check_rows_file(path: Path, content: bytes, expected: Mapping[str, Any]) -> None:
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


def check_records(path: Path, records: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
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
