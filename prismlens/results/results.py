"""Per-item rows and the manifest that says where they came from, on disk and back; knows nothing of what they mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prismlens.errors import ResultsError
from prismlens.markup import block, facts, table, title
from prismlens.results.folder import MANIFEST, ROWS, check_free, read, write_whole
from prismlens.results.manifest import FORMAT, VERSION, check_records, check_rows_file, read_manifest
from prismlens.results.values import checked_rows, encoded, plain, special_float


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
        object.__setattr__(self, "rows", checked_rows(self.rows))
        manifest = plain(self.manifest, "the manifest")
        try:
            json.dumps(manifest, allow_nan=False)
        except ValueError as error:
            raise ResultsError("the manifest holds NaN or infinity", needed="JSON values", fix="use None") from error
        object.__setattr__(self, "manifest", manifest)

    def frame(self) -> pd.DataFrame:
        """A copy of the rows."""
        return self.rows.copy(deep=True)

    def _repr_html_(self) -> str:
        known = {name: self.manifest[name] for name in ("model", "weights", "target", "seed") if name in self.manifest}
        names = list(self.rows.columns)[:12]
        return block(
            title("Results", f"{len(self.rows)} rows, {len(self.rows.columns)} columns"),
            facts(known),
            table(names, self.rows[names].head(8).to_numpy(dtype=object).tolist(), shown=8),
        )

    def save(self, folder: str | Path) -> Path:
        """Write `rows.jsonl` and `manifest.json` into a new folder, all or nothing; returns its full path.

        Raises:
            ResultsError: the path is a file, or a folder that holds anything.
        """
        target = Path(folder).expanduser().resolve()
        check_free(target)
        write_whole(target, self.files())
        return target

    def files(self) -> dict[str, bytes]:
        """Name -> content of the two files that `save` writes; `load` reads them back."""
        rows = "".join(f"{line}\n" for line in encoded(self.rows)).encode()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "rows": {"count": len(self.rows), "bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()},
            "columns": {name: str(dtype) for name, dtype in self.rows.dtypes.items()},
            "manifest": self.manifest,
        }
        return {ROWS: rows, MANIFEST: (json.dumps(about, indent=2, allow_nan=False) + "\n").encode()}

    @staticmethod
    def load(folder: str | Path) -> Results:
        """Read a saved folder back; values, order and column types are as they were.

        Raises:
            ResultsError: a file is missing, cut short, changed since it was saved, or of another version.
        """
        source = Path(folder).expanduser().resolve()
        about = read_manifest(source / MANIFEST)
        rows = read(source / ROWS)
        check_rows_file(source / ROWS, rows, about["rows"])
        records = [json.loads(line, object_hook=special_float) for line in rows.splitlines()]
        check_records(source / MANIFEST, records, about)
        columns = {
            name: pd.Series([record[name] for record in records], dtype=dtype, index=range(len(records)))
            for name, dtype in about["columns"].items()
        }
        return Results(pd.DataFrame(columns, index=range(len(records))), about["manifest"])
