"""A saved cache: a manifest and shards of items, opened without reading the activations; needs no model, no image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismlens.cache.activations import Activations
from prismlens.cache.readout import BlockWeights, Readout
from prismlens.cache.sequences import record_of, restored, tensors_of
from prismlens.cache.shard import POSITIONS, SEQUENCES, VALUES, Shard, write_tensors
from prismlens.errors import ResultsError
from prismlens.positions import Positions
from prismlens.unrolled import Unrolled, concatenate

FORMAT, VERSION = "prismlens-cache", 1
MANIFEST, NORMS = "manifest.json", "norms.safetensors"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def write_shard(path: Path, cache: Activations) -> dict[str, Any]:
    """Write a cache's activations and sequences into one file; returns what the manifest has to say about it."""
    groups = (
        (VALUES, {name: cache.flat(name) for name in cache}),
        (SEQUENCES, tensors_of(cache.unrolled)),
        (POSITIONS, {"rows": cache.positions.rows, "columns": cache.positions.columns}),
    )
    record = record_of(cache.unrolled)  # before the file, so that an item that cannot be stored leaves none
    written = write_tensors(path, {start + name: value for start, group in groups for name, value in group.items()})
    return {**written, **record, "names": list(cache), "dropped": list(cache.positions.dropped)}


def write_manifest(
    folder: Path,
    shards: Sequence[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any],
    readout: Readout | None,
    edited: Sequence[str],
    has_batch_dim: bool = True,
) -> None:
    """Write the norms, and then the manifest, beside the shards.

    Args:
        folder: that holds the shards.
        shards: what `write_shard` returned for each, in order.
        manifest, readout, edited, has_batch_dim: as in the cache.
    """
    about: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "manifest": dict(manifest), "edited": list(edited),
        "has_batch_dim": has_batch_dim, "norms": None, "shards": list(shards),
    }  # fmt: skip
    if readout is not None:
        ln1 = torch.stack([block.ln1.cpu() for block in readout.blocks])
        written = write_tensors(folder / NORMS, {"ln1": ln1, "ln_final": readout.ln_final})
        about["norms"] = {**written, "eps": readout.eps, "weights": readout.weights}
    (folder / MANIFEST).write_text(_signed(about))


def _signed(about: Mapping[str, Any]) -> str:
    """The manifest's text, which ends with a digest of the rest."""
    body = {name: value for name, value in about.items() if name != "sha256"}
    try:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
        return json.dumps({**body, "sha256": digest}, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ResultsError(f"the manifest cannot be stored: {error}", needed="JSON values, finite numbers") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """A saved cache's manifest, exactly as it was written.

    Raises:
        ResultsError: there is none, it was changed, or it is of another version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        about = json.loads(text)
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be read: {error.strerror}",
            needed="a folder that ActivationCache.save or cache_to_disk has finished",
            cause="another folder, or one that is still being written (its name ends in .partial)",
        ) from error
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}", cause="it was changed", fix="copy it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
        raise ResultsError(f"{path} is no manifest of activations", needed=f"{FORMAT!r}, version {VERSION}")
    if _signed(about) != text:
        raise ResultsError(f"{path} was changed after it was saved", fix="copy the folder again, or make it anew")
    return about


@dataclass(frozen=True, eq=False)
class StoredValues(Mapping[str, Tensor]):
    """Activations by name, read from shards each time they are asked for."""

    shards: tuple[Shard, ...]
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        # A shard without latents has no fed-back vectors: no rows, so nothing is lost by leaving it out.
        return torch.cat([shard.read(VALUES + name) for shard in self.shards if name in shard.record["names"]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def opened(folder: Path) -> dict[str, Any]:
    """The fields of the cache that a folder holds; the activations stay on the disk.

    Raises:
        ResultsError: a file is missing or was changed.
    """
    about = read_manifest(folder)
    shards = tuple(Shard(folder / record["file"], record) for record in about["shards"])
    parts = [restored(shard.read_all(SEQUENCES), shard.record) for shard in shards]
    longest = max((shard.record["names"] for shard in shards), key=len)
    return {
        "values_by_name": StoredValues(shards, tuple(longest)),
        "positions": _joined(shards, parts),
        "unrolled": parts[0] if len(parts) == 1 else concatenate(parts),
        "readout": None if about["norms"] is None else _norms(folder, about["norms"]),
        "manifest": about["manifest"],
        "edited": tuple(about["edited"]),
        "has_batch_dim": about["has_batch_dim"],
    }


def _joined(shards: Sequence[Shard], parts: Sequence[Unrolled]) -> Positions:
    """The positions of all shards in the rows and columns of the joined sequences."""
    n_prompt, before = max(part.n_prompt for part in parts), 0
    rows, columns = [], []
    for shard, part in zip(shards, parts, strict=True):
        rows.append(shard.read(f"{POSITIONS}rows") + before)
        columns.append(shard.read(f"{POSITIONS}columns") + n_prompt - part.n_prompt)
        before += len(part.items)
    dropped = tuple(name for shard in shards for name in shard.record["dropped"])
    return Positions(torch.cat(rows), torch.cat(columns), dropped)


def _norms(folder: Path, record: Mapping[str, Any]) -> Readout:
    norms = Shard(folder / record["file"], record)
    blocks = tuple(BlockWeights(weight) for weight in norms.read("ln1"))
    return Readout(blocks, norms.read("ln_final"), record["eps"], weights=record["weights"])
