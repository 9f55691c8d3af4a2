"""The weight files that belong to a model folder, and the dtypes in them, read off their headers; loads no tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from prismlens.errors import CheckpointError

SAFE = ".safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of a safetensors header that are plain numbers; the others belong to quantised models."""


def digest_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> hashlib.blake2b:
    """A digest of eight bytes, still open, that changes with any name and any value; the same on any device."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest


def find(source: str | Path, name: str) -> Path | None:
    """A file of a folder or hub id (fetched where needed), or None where there is none of that name."""
    found = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found) if isinstance(found, str) else None


def named_files(source: str | Path, config: PreTrainedConfig) -> list[str]:
    """The weight files that the index and the config name; transformers opens these whatever their format."""
    index = find(source, INDEX)
    files = set(json.loads(index.read_text())["weight_map"].values()) if index is not None else set()
    explicit = getattr(config, "transformers_weights", None)
    return sorted({str(file) for file in files} | ({str(explicit)} if explicit is not None else set()))


def refuse_pickled(name: str, files: list[str]) -> None:
    """Raise CheckpointError where any of the files is one."""
    if files:
        raise CheckpointError(
            f"{name!r} holds pickled weights ({files[0]})",
            needed=f"weights as {SAFE}",
            cause="pickled files can run code when they are opened, so they are refused",
            fix="convert them on a machine that you trust: model.save_pretrained(folder)",
        )


def stored_dtypes(source: str | Path, config: PreTrainedConfig, name: str) -> dict[torch.dtype, str]:
    """The dtypes in which the weights are stored, each with the name of one weight that has it.

    Raises:
        CheckpointError: a file is missing, or a weight is not stored as a floating-point number.
    """
    found: dict[torch.dtype, str] = {}
    files = named_files(source, config)
    single = find(source, SINGLE)
    # transformers prefers the single file where both lie there.
    for file in [SINGLE] if single is not None and not getattr(config, "transformers_weights", None) else files:
        path = find(source, file)
        if path is None:
            raise CheckpointError(
                f"the weights of {name!r} could not be read: {INDEX} names {file}, which is not there",
                needed="every file that the index names",
                cause="a download that broke off",
                fix="fetch the folder again",
            )
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dict
                found.setdefault(_dtype(opened.get_slice(key).get_dtype(), key, name), key)
    return found


def _dtype(stored: str, key: str, name: str) -> torch.dtype:
    if stored not in STORED:
        raise CheckpointError(
            f"{name!r} stores {key} as {stored}",
            needed=f"one of {', '.join(STORED)}",
            cause="a quantised model, whose numbers mean nothing without their scales",
            fix="use the model it was quantised from",
        )
    return STORED[stored]


def as_dtype(dtype: torch.dtype | str, stored: dict[torch.dtype, str], name: str) -> torch.dtype:
    """The dtype to load in: one given as such or by name, and for ``"auto"`` that of the files.

    Raises:
        CheckpointError: no floating-point dtype, or ``"auto"`` where the files hold more than one.
    """
    if dtype == "auto":
        if len(stored) != 1:
            held = (
                ", ".join(f"{str(one).removeprefix('torch.')} ({key})" for one, key in stored.items()) or "no weights"
            )
            raise CheckpointError(
                f'dtype = "auto", and {name!r} holds {held}',
                needed="weights of one dtype",
                cause="parts of the model were trained in another precision",
                fix='name one, such as dtype="float32", which loses nothing',
            )
        return next(iter(stored))
    found: object = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in STORED.values():
        raise CheckpointError(
            f"dtype = {dtype!r}",
            needed=f'"auto" or one of {", ".join(map(_short, STORED.values()))}',
            cause="a misspelt name, or a dtype in which this model cannot run",
            fix='dtype="auto" keeps that of the files',
        )
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
