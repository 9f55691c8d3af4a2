"""The JSON form of an edit's parts and back; checks keys and the version, and leaves values to the parts themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from prismlens.errors import EditError, RoleError
from prismlens.interventions.cut import Cut
from prismlens.interventions.delete_kv import DeleteKV
from prismlens.interventions.identity import Identity
from prismlens.interventions.mean import Mean
from prismlens.interventions.noise import Noise
from prismlens.interventions.operation import Operation, Structural
from prismlens.interventions.oracle import Oracle
from prismlens.interventions.scale import Scale
from prismlens.interventions.swap import Swap
from prismlens.interventions.zero import Zero
from prismlens.positions import Role, parse

FORMAT = "prismlens.edit"
VERSION = 1
KEYS = ("format", "mode", "op", "positions", "seed", "site", "version")

OPERATIONS: Mapping[str, type[Operation | Structural]] = MappingProxyType(
    {kind.__name__: kind for kind in (Cut, DeleteKV, Identity, Mean, Noise, Oracle, Scale, Swap, Zero)}
)
"""Every operation under the name that stands in the JSON."""

READERS: Mapping[tuple[str, str], Callable[[Any], Any]] = MappingProxyType(
    {
        ("Cut", "to"): parse,
        ("Cut", "by"): parse,
        ("Cut", "layers"): lambda value: tuple(value) if isinstance(value, list) else value,
    }
)
"""How the fields are read that JSON cannot hold as they are."""


def dumps(op: Operation | Structural, positions: Role, site: str, mode: str, seed: int) -> str:
    """The parts of an edit as JSON text, keys sorted.

    Raises:
        EditError: the operation is not one of `OPERATIONS`.
    """
    name = type(op).__name__
    if OPERATIONS.get(name) is not type(op):
        raise EditError(
            f"the operation {op} cannot be saved",
            needed=f"one of {', '.join(OPERATIONS)}",
            cause="it is an operation of your own",
            fix="save its arguments yourself",
        )
    fields = {field.name: _plain(getattr(op, field.name)) for field in dataclasses.fields(op)}  # type: ignore[arg-type]
    record = {
        "format": FORMAT,
        "version": VERSION,
        "op": {"name": name, **fields},
        "positions": str(positions),
        "site": site,
        "mode": mode,
        "seed": seed,
    }
    return json.dumps(record, sort_keys=True, allow_nan=False)


def loads(text: str) -> dict[str, Any]:
    """The arguments of an edit from its JSON text.

    Raises:
        EditError: not JSON, another format version, unknown or missing keys, or values that are refused.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise EditError(f"the text {text[:80]!r} is not JSON ({error})", needed="what Edit.to_json wrote") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise EditError(
            f"the JSON {text[:80]!r} is not an edit",
            needed=f'an object with "format": "{FORMAT}"',
            cause="another file was read",
            fix="give what Edit.to_json wrote",
        )
    if record.get("version") != VERSION:
        raise EditError(
            f"the edit has the format version {record.get('version')!r}",
            needed=f"version {VERSION}",
            cause="it was written by another version of prismlens",
            fix="write it again with this version",
        )
    _same_keys("the edit", record, KEYS)
    arguments = {key: record[key] for key in ("site", "mode", "seed")}
    return {**arguments, "op": _operation(record["op"]), "positions": _read("positions", parse, record["positions"])}


def _operation(record: Any) -> Operation | Structural:
    """The operation that a record with a name and its fields stands for."""
    name = record.get("name") if isinstance(record, dict) else None
    if not isinstance(name, str) or name not in OPERATIONS:
        raise EditError(f"the edit has the operation {record!r}", needed=f"one named {', '.join(OPERATIONS)}")
    kind = OPERATIONS[name]
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    _same_keys(f"the operation {name}", record, ("name", *names))
    return kind(**{field: _read(field, READERS.get((name, field), _as_it_is), record[field]) for field in names})


def _as_it_is(value: Any) -> Any:
    """The value; the operation checks it."""
    return value


def _read(name: str, reader: Callable[[Any], Any], value: Any) -> Any:
    """The value as its reader gives it; a role that cannot be read is an error of the edit."""
    try:
        return reader(value)
    except RoleError as error:
        given = f"the edit's {name} cannot be read: {error.given}"
        raise EditError(given, needed=error.needed, fix=error.fix) from error


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Role):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _same_keys(what: str, record: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """An EditError where a key is unknown or missing."""
    unknown, missing = sorted(set(record) - set(keys)), sorted(set(keys) - set(record))
    if unknown or missing:
        labelled = (("unknown", unknown), ("missing", missing))
        parts = [f"{label} {', '.join(map(repr, names))}" for label, names in labelled if names]
        raise EditError(f"{what} has keys that do not fit: {'; '.join(parts)}", needed=f"exactly {', '.join(keys)}")
