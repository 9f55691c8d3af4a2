"""The JSON and YAML forms of an edit's parts and back; checks keys and the version, not values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from prismlens.errors import EditError, RoleError
from prismlens.interventions.constant import Constant
from prismlens.interventions.cut import Cut
from prismlens.interventions.delete_kv import DeleteKV
from prismlens.interventions.identity import Identity
from prismlens.interventions.mean import Mean
from prismlens.interventions.noise import Noise
from prismlens.interventions.operation import Operation, Structural
from prismlens.interventions.oracle import Oracle
from prismlens.interventions.patch import Patch
from prismlens.interventions.project import Project
from prismlens.interventions.repeat import Repeat
from prismlens.interventions.scale import Scale
from prismlens.interventions.shuffle import Shuffle
from prismlens.interventions.skip import Skip
from prismlens.interventions.source import KEYS as SOURCE_KEYS
from prismlens.interventions.source import Source
from prismlens.interventions.steer import Steer
from prismlens.interventions.swap import Swap
from prismlens.interventions.values import KEYS as VALUES_KEYS
from prismlens.interventions.values import Values
from prismlens.interventions.zero import Zero
from prismlens.positions import Role, parse

FORMAT = "prismlens.edit"
VERSION = 1
KEYS = ("format", "mode", "op", "positions", "seed", "site", "version")

OPERATIONS: Mapping[str, type[Operation | Structural]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            Constant, Cut, DeleteKV, Identity, Mean, Noise, Oracle, Patch, Project, Repeat, Scale, Shuffle, Skip, Steer,
            Swap, Zero,
        )
    }
)  # fmt: skip
"""Every operation under the name that stands in the JSON."""

ROLES = {("Cut", "to"), ("Cut", "by")}
"""The fields that hold a role."""


def dumps(record: Mapping[str, Any]) -> str:
    """The record as JSON text, keys sorted."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def dumps_yaml(record: Mapping[str, Any]) -> str:
    """The record as YAML text, keys in the order of the record."""
    return yaml.safe_dump(dict(record), sort_keys=False)


def to_record(op: Operation | Structural, positions: Role, site: str, mode: str, seed: int) -> dict[str, Any]:
    """The parts of an edit as JSON and YAML can hold them.

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
    return {
        "format": FORMAT,
        "version": VERSION,
        "op": {"name": name, **fields},
        "positions": str(positions),
        "site": site,
        "mode": mode,
        "seed": seed,
    }


def loads(text: str, sources: Sequence[Source] = ()) -> dict[str, Any]:
    """The arguments of an edit from its JSON text; see `arguments`."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise EditError(f"the text {text[:80]!r} is not JSON ({error})", needed="what Edit.to_json wrote") from error
    return arguments(record, text, sources)


def loads_yaml(text: str, sources: Sequence[Source] = ()) -> dict[str, Any]:
    """The arguments of an edit from its YAML text; see `arguments`."""
    try:
        record = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EditError(f"the text {text[:80]!r} is not YAML ({error})", needed="what Edit.to_yaml wrote") from error
    return arguments(record, text, sources)


def arguments(record: Any, text: str, sources: Sequence[Source]) -> dict[str, Any]:
    """The arguments of an edit from its record.

    Args:
        record: what was read.
        text: what it was read from, for errors.
        sources: where a `Patch` may find its values again, by name and hash.

    Raises:
        EditError: no edit, another format version, unknown or missing keys, or values that are refused.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise EditError(
            f"the text {text[:80]!r} is not an edit",
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
    plain = {key: record[key] for key in ("site", "mode", "seed")}
    return {**plain, "op": _operation(record["op"], sources), "positions": _role("positions", record["positions"])}


def _operation(record: Any, sources: Sequence[Source]) -> Operation | Structural:
    """The operation that a record with a name and its fields stands for."""
    name = record.get("name") if isinstance(record, dict) else None
    if not isinstance(name, str) or name not in OPERATIONS:
        raise EditError(f"the edit has the operation {record!r}", needed=f"one named {', '.join(OPERATIONS)}")
    kind = OPERATIONS[name]
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    _same_keys(f"the operation {name}", record, ("name", *names))
    read = {
        field: _role(field, record[field]) if (name, field) in ROLES else _value(record[field], sources)
        for field in names
    }
    return kind(**read)


def _value(value: Any, sources: Sequence[Source]) -> Any:
    """The value of a field; the operation checks it."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict) and set(value) == VALUES_KEYS:
        return Values.from_record(value)
    if isinstance(value, dict) and set(value) == SOURCE_KEYS:
        known = Source(value["source"], value["digest"])
        return next((source for source in sources if source == known), known)
    return value


def _role(name: str, text: Any) -> Role:
    """The role; one that cannot be read is an error of the edit."""
    try:
        return parse(text)
    except RoleError as error:
        given = f"the edit's {name} cannot be read: {error.given}"
        raise EditError(given, needed=error.needed, fix=error.fix) from error


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Role):
        return str(value)
    if isinstance(value, Values | Source):
        return value.to_record()
    return list(value) if isinstance(value, tuple) else value


def _same_keys(what: str, record: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """An EditError where a key is unknown or missing."""
    unknown, missing = sorted(set(record) - set(keys)), sorted(set(keys) - set(record))
    if unknown or missing:
        labelled = (("unknown", unknown), ("missing", missing))
        parts = [f"{label} {', '.join(map(repr, names))}" for label, names in labelled if names]
        raise EditError(f"{what} has keys that do not fit: {'; '.join(parts)}", needed=f"exactly {', '.join(keys)}")
