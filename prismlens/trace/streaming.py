"""Activations of many items to disk, shard by shard, resumed after any interruption; knows no model."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from prismlens.cache import ActivationCache, Readout, open_cache
from prismlens.cache.folder import MANIFEST, read_manifest, shard_name, write_manifest, write_shard
from prismlens.cache.sequences import item_record
from prismlens.cache.shard import Shard
from prismlens.cache.writing import check_free, place
from prismlens.data.images import open_image
from prismlens.errors import ItemError, ResultsError, SettingError
from prismlens.types import Item

SUFFIX = ".partial"
"""Ends the name of the folder beside the target in which finished shards wait for the rest."""
PLAN, SHOWN = "plan.json", 8

Compute = Callable[[Sequence[Item]], ActivationCache]


def stream_to_disk(
    items: Sequence[Item],
    folder: str | Path,
    compute: Compute,
    *,
    plan: Mapping[str, Any],
    shard_items: int,
    readout: Readout,
    edited: tuple[str, ...] = (),
    progress: bool = False,
) -> ActivationCache:
    """Write the activations of all items, `shard_items` at a time in memory, and open what was written.

    The folder appears when it is complete. Until then shards lie in a folder beside it; each is there whole or not at
    all, so the same call goes on where an earlier one was stopped, and the folder is the same to the byte. A call for
    a folder that is complete under the same plan opens it.

    Args:
        items: the items, in order.
        folder: the new folder.
        compute: the cache of some of the items.
        plan: everything that decides the values, JSON values; the items and `shard_items` are added here.
        shard_items: items a shard.
        readout: of the model.
        edited: names of the sites that edits wrote to.
        progress: show a bar over shards.

    Raises:
        ResultsError: the folder, or what is there of it, belongs to another plan (with the differences); or it holds
            something else; or a finished shard was changed.
        SettingError: `shard_items` is below 1.
        ItemError: an image cannot be read.
    """
    if shard_items < 1:
        raise SettingError(f"shard_items = {shard_items}", needed="at least 1")
    target = Path(folder).expanduser().resolve()
    work = target.with_name(target.name + SUFFIX)
    added = {"shard_items": shard_items, "items": {item.id: item_digest(item) for item in items}}
    wanted = json.loads(json.dumps({**plan, **added}, allow_nan=False))
    if (target / MANIFEST).exists():
        _same_plan(target, read_manifest(target)["manifest"], wanted)
    else:
        check_free(target)
        _open_work(work, wanted)
        starts = range(0, len(items), shard_items)
        records = [
            _shard(work, number, items[start : start + shard_items], compute)
            for number, start in enumerate(tqdm(starts, desc=target.name, unit="shard", disable=not progress))
        ]
        write_manifest(work / "shards", records, manifest=wanted, readout=readout, edited=edited)
        place(work / "shards", target)
    shutil.rmtree(work, ignore_errors=True)
    return open_cache(target).with_readout(readout)


def item_digest(item: Item) -> str:
    """sha256 of an item and its image: of the file's bytes, or of the pixels where it is in memory.

    Raises:
        ItemError: the image cannot be read.
    """
    digest = hashlib.sha256(json.dumps({**item_record(item), "image": None}, sort_keys=True).encode())
    if isinstance(item.image, Image.Image):
        seen = open_image(item.image, item.id)  # as the model sees it: a palette stands beside the pixels
        digest.update(f"{seen.mode} {seen.size}".encode() + seen.tobytes())
        return digest.hexdigest()
    try:
        digest.update(item.image.read_bytes())
    except OSError as error:
        raise ItemError(
            f"the image {str(item.image)!r} of item {item.id!r} cannot be read: {error.strerror}",
            needed="an image file",
        ) from error
    return digest.hexdigest()


def _open_work(work: Path, wanted: Mapping[str, Any]) -> None:
    """Make the folder for shards with its plan, or check that the one which is there has the same plan."""
    for name in ("drafts", "records", "shards"):
        (work / name).mkdir(parents=True, exist_ok=True)
    path = work / PLAN
    if path.exists():
        _same_plan(work, json.loads(path.read_text()), wanted)
    else:
        _write_text(work, path, json.dumps(wanted, indent=1))


def _shard(work: Path, number: int, items: Sequence[Item], compute: Compute) -> dict[str, Any]:
    """The record of one shard, which is computed where an earlier call did not finish it.

    The record is written after the file, so a file without one is from a call that was stopped in between.
    """
    name = shard_name(number)
    record_path, path = (work / "records" / name).with_suffix(".json"), work / "shards" / name
    if record_path.exists():
        record = json.loads(record_path.read_text())
        Shard(path, record)
        return record
    draft = work / "drafts" / f"{uuid.uuid4().hex}.safetensors"
    record = {**write_shard(draft, compute(items)), "file": name}
    place(draft, path)
    _write_text(work, record_path, json.dumps(record))
    return record


def _write_text(work: Path, path: Path, text: str) -> None:
    draft = work / "drafts" / uuid.uuid4().hex
    draft.write_text(text)
    place(draft, path)


def _same_plan(where: Path, found: Any, wanted: Any) -> None:
    differing = differences(found, wanted)
    if not differing and list(found["items"]) != list(wanted["items"]):
        differing = ["items: the same in another order"]
    if differing:
        rest = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ResultsError(
            f"{where} belongs to another plan: {'; '.join(differing[:SHOWN])}{rest}",
            needed="the same model, items, sites, positions and settings",
            cause="the call was changed after it was interrupted or finished",
            fix="repeat the first call, choose another folder, or remove this one",
        )


def differences(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, one line a place: ``batch_size: 50 there, 8 now``."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [f"{at}: {_short(found)} there, {_short(wanted)} now"]
    none = "(none)"
    return [
        line
        for key in dict.fromkeys([*found, *wanted])
        for line in differences(found.get(key, none), wanted.get(key, none), f"{at}.{key}" if at else key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
