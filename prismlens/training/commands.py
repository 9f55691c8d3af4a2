"""What the command line says about training, turned into a run: names to values, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from prismlens.data.load import load_items
from prismlens.data.viscot import read_viscot
from prismlens.errors import SettingError
from prismlens.training.protocol import CHOICES, PROTOCOLS
from prismlens.training.settings import RUNS, TrainSettings
from prismlens.training.sources import ItemSource, SceneSource, Source

VISCOT = "viscot:"


def source_of(items: str, cache: Path | None, *, image_root: Path | None, on_bad: str, writes_start: bool) -> Source:
    """The data that a spec names: ``shapes`` (rendered scenes), ``viscot:FILE``, or any spec of `load_items`.

    Args:
        items: the spec.
        cache: folder for merger outputs, None to run the tower in every step.
        image_root: what image paths of a Visual-CoT file are relative to; the file's own folder by default.
        on_bad: for bad rows: ``"raise"`` or ``"drop"``.
        writes_start: the model writes the block's start marker itself.
    """
    if items == "shapes":
        if writes_start or image_root is not None:
            raise SettingError("--emitted or --image-root with shapes", needed="data from files")
        return SceneSource(cache=cache)
    if items.startswith(VISCOT):
        rows: Any = read_viscot(items.removeprefix(VISCOT), image_root=image_root, on_bad=on_bad)
    else:
        rows = load_items(items)
    return ItemSource(rows, items, cache=cache, writes_start=writes_start)


def settings_of(run: str, protocol: str, flips: list[str], given: Mapping[str, Any]) -> TrainSettings:
    """The settings of a run with what the user gave.

    Args:
        run: ``"tiny"`` or ``"paper"``.
        protocol: ``"fair"`` or ``"paper"``.
        flips: single differences between the protocols, written ``field=value``.
        given: fields of `TrainSettings`; None where the user said nothing.

    Raises:
        SettingError: an unknown run, protocol, field or value.
    """
    for name, value, known in (("run", run, RUNS), ("protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise SettingError(f"{name} {value!r}", needed=f"one of {', '.join(known)}")
    chosen = PROTOCOLS[protocol]
    for flip in flips:
        field, equals, value = flip.partition("=")
        if not equals or field not in CHOICES:
            raise SettingError(
                f"--flip {flip!r}",
                needed="field=value, with a field of the protocol: "
                + "; ".join(f"{name}={'|'.join(values)}" for name, values in CHOICES.items()),
            )
        chosen = replace(chosen, **{field: value})
    unknown = set(given) - {field.name for field in fields(TrainSettings)}
    assert not unknown, unknown
    return replace(RUNS[run], protocol=chosen, **{k: v for k, v in given.items() if v is not None})


def sharding(fsdp_config: Path | None, deepspeed: Path | None) -> dict[str, Any]:
    """Arguments of transformers for FSDP or DeepSpeed, from their JSON files; empty for neither.

    Raises:
        SettingError: both.
    """
    if fsdp_config is not None and deepspeed is not None:
        raise SettingError("--fsdp-config and --deepspeed", needed="one of them")
    if fsdp_config is not None:
        return {"fsdp": True, "fsdp_config": str(fsdp_config)}
    return {} if deepspeed is None else {"deepspeed": str(deepspeed)}
