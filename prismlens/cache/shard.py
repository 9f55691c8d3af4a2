"""One file of activations and sequences: written with a digest of every tensor, read one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prismlens.errors import ResultsError

VALUES, SEQUENCES, POSITIONS = "values/", "sequences/", "positions/"
"""Beginnings of the names of tensors: activations, fields of `Unrolled`, fields of `Positions`."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; returns its name, length, and the digests that `Shard` checks.

    The file depends on names and values only, not on the order, the device or the strides of the tensors.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    seen: set[int] = set()
    for name, tensor in plain.items():  # safetensors refuses tensors that share memory
        start = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    save_file(plain, path)
    digests = {name: _digest(tensor) for name, tensor in plain.items()}
    return {"file": path.name, "bytes": path.stat().st_size, "header": _header(path), "tensors": digests}


@dataclass(frozen=True, eq=False)
class Shard:
    """A file that was written by `write_tensors`, opened without reading its tensors.

    Args:
        path: the file.
        record: what `write_tensors` returned, and perhaps more.
    """

    path: Path
    record: Mapping[str, Any]
    _checked: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        try:
            found = self.path.stat().st_size
            header = _header(self.path) if found == self.record["bytes"] else ""
        except OSError as error:
            raise ResultsError(
                f"{self.path} cannot be read: {error.strerror}", needed="every file that the manifest lists"
            ) from error
        if found != self.record["bytes"]:
            raise _changed(self.path, f"it has {found} bytes instead of {self.record['bytes']}")
        if header != self.record["header"]:
            raise _changed(self.path, "its header is not the one that was written")

    def names(self, beginning: str) -> list[str]:
        """The tensors whose names begin so, without the beginning."""
        return [name.removeprefix(beginning) for name in self.record["tensors"] if name.startswith(beginning)]

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from the disk, after a check of its bytes at the first time.

        Raises:
            ResultsError: the bytes are not those that were written.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _changed(self.path, str(error)) from error
        if name not in self._checked:
            if _digest(tensor) != self.record["tensors"][name]:
                raise _changed(self.path, f"the bytes of {name!r} differ from those that were written")
            self._checked.add(name)
        return tensor

    def read_all(self, beginning: str) -> dict[str, Tensor]:
        """Every tensor whose name begins so."""
        return {name: self.read(beginning + name) for name in self.names(beginning)}


def _changed(path: Path, how: str) -> ResultsError:
    return ResultsError(
        f"{path} was changed after it was saved: {how}",
        cause="a copy that stopped early, a damaged disk, or an edit",
        fix="copy the folder again, or make it anew",
    )


def _digest(tensor: Tensor) -> str:
    """sha256 of the type, the shape and the bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(path: Path) -> str:
    """sha256 of everything before the tensors: the header's length (8 bytes, little-endian) and the header."""
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
