"""Records on disk: a JSON file each, and beside those of a model its per-item rows; knows nothing of what they say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd

RECORDS = Path(__file__).parent / "records"


def present(name: str) -> bool:
    """Whether the record is there."""
    return (RECORDS / f"{name}.json").exists()


def write(name: str, record: dict[str, Any], rows: pd.DataFrame | None) -> None:
    """Write a record, its rows first: a kill between the two leaves the record missing."""
    RECORDS.mkdir(exist_ok=True)
    draft = RECORDS / f"{name}.draft"
    if rows is not None:
        with gzip.GzipFile(draft, "wb", mtime=0) as file:
            file.write(rows.to_csv(index=False).encode())
        draft.rename(RECORDS / f"{name}.csv.gz")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.rename(RECORDS / f"{name}.json")


def read(kind: str) -> dict[str, dict[str, Any]]:
    """The records of one kind, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob(f"{kind}-*.json"))}


def rows(name: str) -> pd.DataFrame:
    """The per-item rows of a record."""
    kept = pd.read_csv(RECORDS / f"{name}.csv.gz", keep_default_na=False, na_values={"donor": [""], "choice": [""]})
    return kept.astype({"correct": bool, "same_output": bool, "needs": bool})
