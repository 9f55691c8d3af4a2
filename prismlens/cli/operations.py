"""From words on a command line to operations: a name, and fields by name; runs nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from prismlens.errors import EditError
from prismlens.interventions import (
    Cut,
    DeleteKV,
    Identity,
    Mean,
    Noise,
    Operation,
    Oracle,
    Repeat,
    Scale,
    Shuffle,
    Skip,
    Structural,
    Swap,
    Zero,
)
from prismlens.interventions.edit_json import ROLES
from prismlens.positions import parse

NAMES: Mapping[str, type[Operation | Structural]] = {
    "zero": Zero, "mean": Mean, "noise": Noise, "swap": Swap, "shuffle": Shuffle, "repeat": Repeat, "oracle": Oracle,
    "scale": Scale, "delete-kv": DeleteKV, "cut": Cut, "skip": Skip, "no-op": Identity,
}  # fmt: skip
"""Name -> operation. Those that take a vector (steer, project, constant, patch) have none: they are for Python."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"sigma": 1.0, "unit": "std"},
    "cut": {"to": "latent", "by": "answer"},
    "skip": {"n": 1},
}
"""Fields that the operation itself requires, and what they are when nothing is given."""
STRENGTH: Mapping[str, str] = {"noise": "sigma", "scale": "factor"}
"""Name -> the field that ``--scale`` sets."""


def operation(text: str, scale: float | None = None) -> Operation | Structural:
    """The operation that ``NAME`` or ``NAME:FIELD=VALUE,FIELD=VALUE`` stands for.

    Args:
        text: for example ``"zero"``, ``"noise:sigma=3,unit=norm"``, ``"swap:donor=different-answer"``.
        scale: strength of those that have one; a strength in the text goes before it.

    Raises:
        EditError: an unknown name or field, a field without a value, or a value that the operation refuses.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise EditError(
            f"no operation is called {name!r}",
            needed=f"one of {', '.join(NAMES)}",
            cause="a misspelt name, or an operation that takes a vector",
            fix="operations with vectors are made in Python: pl.Steer, pl.Project, pl.Constant, pl.Patch",
        )
    kind = NAMES[name]
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    fields: dict[str, Any] = dict(DEFAULTS.get(name, {}))
    if scale is not None and name in STRENGTH:
        fields[STRENGTH[name]] = scale
    for part in filter(None, rest.split(",")):
        field, equals, value = part.partition("=")
        if field not in known or not equals:
            raise EditError(
                f"{part!r} in {text!r}",
                needed=f"FIELD=VALUE with a field of {name}: {', '.join(known) or 'it has none'}",
            )
        fields[field] = parse(value) if (kind.__name__, field) in ROLES else _plain(value)
    required = [field.name for field in dataclasses.fields(kind) if _required(field) and field.name not in fields]  # type: ignore[arg-type]
    if required:
        raise EditError(f"{text!r} without {', '.join(required)}", needed=f"{name}:{required[0]}=VALUE, or --scale")
    return kind(**{key: parse(value) if _role_text(kind, key, value) else value for key, value in fields.items()})


def check_scale(names: list[str], scale: float | None) -> None:
    """Refuse a strength that no operation would take.

    Raises:
        EditError: `scale` is given, and none of the operations has a strength.
    """
    if scale is not None and not any(name.partition(":")[0] in STRENGTH for name in names):
        raise EditError(
            f"--scale {scale:g} with {', '.join(names)}",
            needed=f"an operation that has a strength: {', '.join(STRENGTH)}",
            fix="leave --scale out",
        )


def _role_text(kind: type, field: str, value: Any) -> bool:
    """Whether a value is the text of a role, as defaults are."""
    return (kind.__name__, field) in ROLES and isinstance(value, str)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: str) -> Any:
    """A number, true, false or null as JSON writes them; any other text as it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value
