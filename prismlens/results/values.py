"""What a value may be that is stored in rows or in a manifest, and its form as JSON; opens no file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from prismlens.errors import ResultsError

SPECIAL = "$float"
"""Key of the object that stands for a float JSON lacks: ``{"$float": "inf"}``, ``"-inf"`` or ``"nan"``."""
KEPT_DTYPES = frozenset(
    [
        *("bool", "boolean", "str", "string", "object", "float16", "float32", "float64"),
        *(f"{kind}{bits}" for kind in ("int", "uint", "Int", "UInt") for bits in (8, 16, 32, 64)),
    ]
)
"""The column types that come back from disk as they went."""


def checked_rows(rows: pd.DataFrame) -> pd.DataFrame:
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
            kept = [plain(value, f"column {name!r}") for value in copy[name]]
            copy[name] = pd.Series(kept, dtype=object, index=copy.index)
    return copy


def plain(value: Any, where: str) -> Any:
    """The value in JSON's own types (and floats that JSON lacks), or a ResultsError that says where it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(entry, where) for entry in value]
    if isinstance(value, Mapping) and SPECIAL not in value and all(type(key) is str for key in value):
        return {key: plain(entry, f"{where}, at {key!r}") for key, entry in value.items()}
    raise ResultsError(
        f"{where} holds {value!r} of the type {type(value).__name__}",
        needed=f"JSON values: text, numbers, booleans, None, lists, dicts with text as keys (but not {SPECIAL!r})",
        fix="convert it, for example with `.tolist()` or `str()`",
    )


def encoded(rows: pd.DataFrame) -> list[str]:
    """One line of JSON per row; Python writes the shortest digits that read back as the same float."""
    columns = {name: [_storable(value, rows[name].dtype) for value in rows[name]] for name in rows.columns}
    return [
        json.dumps({name: column[i] for name, column in columns.items()}, allow_nan=False) for i in range(len(rows))
    ]


def _storable(value: Any, dtype: Any) -> Any:
    """The value for JSON: outside columns of Python objects a missing value is null, whatever pandas calls it."""
    if not pd.api.types.is_object_dtype(dtype):
        return None if pd.isna(value) else tagged(value.item() if isinstance(value, np.generic) else value)
    return tagged(value)


def tagged(value: Any) -> Any:
    """The value with every float that JSON lacks replaced by its tagged name."""
    if isinstance(value, float) and not math.isfinite(value):
        return {SPECIAL: str(value)}
    if isinstance(value, list):
        return [tagged(entry) for entry in value]
    if isinstance(value, dict):
        return {key: tagged(entry) for key, entry in value.items()}
    return value


def special_float(value: dict[str, Any]) -> Any:
    """The float that a tagged name stands for; any other object as it is."""
    return float(value[SPECIAL]) if SPECIAL in value else value
