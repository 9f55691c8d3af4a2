"""Reads a folder in the BLINK layout into items, and lists the rows that need several images; knows nothing of models.

The layout is that of the dataset `BLINK-Benchmark/BLINK` (Fu et al. 2024, arXiv:2404.12390), whose answers are public
for the split `val` only:

    Counting/val-00000-of-00001.parquet       columns idx, question, prompt, sub_task, choices, answer ("(A)"),
                                              image_1 ... image_4 (encoded bytes, or nothing)

A subtask may also be a JSON list of such rows, `Counting/val.json`, whose images are paths relative to its folder.

An `Item` has one image. Counting, IQ_Test, Relative_Reflectance and Spatial_Relation ask about one (547 of the 697 rows
of `SUBTASKS`); each of Jigsaw's 150 rows needs three, which are not stitched into one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from prismlens.data.images import image_size
from prismlens.data.rows import BadRow, check_on_bad, excerpt, settle
from prismlens.errors import ItemError, SettingError
from prismlens.types import LETTERS, Item

SUBTASKS = ("Counting", "IQ_Test", "Jigsaw", "Relative_Reflectance", "Spatial_Relation")
"""The subtasks that studies of latent visual reasoning score."""

_FIELDS = {"idx": str, "question": str, "choices": list, "answer": str}
_IMAGES = ("image_1", "image_2", "image_3", "image_4")
_ANSWER = re.compile(r"\(?([A-Z])\)?")


@dataclass(frozen=True, eq=False)
class BlinkFolder:
    """What a folder holds.

    Args:
        items: one for every usable row, by subtask.
        bad: the rows left out, with the columns file, line (the row's place in its file), reason and text.
    """

    items: tuple[Item, ...]
    bad: pd.DataFrame


def read_blink(folder: str | Path, *, subtasks: Sequence[str] | None = None, on_bad: str = "raise") -> BlinkFolder:
    """The questions of a folder in the BLINK layout.

    An item has the row's `idx` as its id, its subtask as its category, `question` and `choices`, and `meta` with
    `prompt` and `sub_task`. Its group is the id of the first item whose image has the same bytes. Images out of parquet
    files stay encoded in memory until they are used.

    Args:
        folder: a folder of subtasks, or the folder of one.
        subtasks: which; `SUBTASKS` if None. Other subtasks of BLINK may be named too.
        on_bad: ``"raise"`` at rows with several images or another fault, or ``"drop"`` them into `bad`.

    Raises:
        ItemError: the folder is not in this layout, or has unusable rows; the message counts them and shows the first
            five.
        SettingError: an unknown `on_bad`, `subtasks` of a subtask's own folder, or parquet files without the library
            that reads them.
    """
    check_on_bad(on_bad)
    root = Path(folder)
    items: list[Item] = []
    bad: list[BadRow] = []
    groups: dict[str, str] = {}
    for place in _subtask_folders(root, subtasks):
        for path in _files(place):
            for line, row in enumerate(_READERS[path.suffix](path), start=1):
                try:
                    items.append(_item(row, path, groups))
                except ItemError as error:
                    bad.append(BadRow(f"{place.name}/{path.name}", line, error.given, excerpt(_text_of(row))))
    several = sum("images, and an item has one" in row.reason for row in bad)
    table = settle(
        f"the folder {root}",
        bad,
        len(items) + len(bad),
        on_bad=on_bad,
        cause=f"{several} rows need several images, as all of Jigsaw's do" if several else "",
        fix="read subtasks with one image, all together (`subtasks=`) or one by its folder" if several else "",
    )
    return BlinkFolder(tuple(items), table)


def _subtask_folders(root: Path, subtasks: Sequence[str] | None) -> list[Path]:
    """The folders of the subtasks, or the given folder where it is that of one."""
    if root.is_dir() and _candidates(root):
        if subtasks is not None:
            raise SettingError(
                f"subtasks = {list(subtasks)} of {root}, which is one subtask's folder",
                needed="the folder of all subtasks, or no `subtasks=`",
            )
        return [root]
    folders = [root / name for name in (SUBTASKS if subtasks is None else subtasks)]
    if not folders:
        raise SettingError("subtasks = []", needed="at least one name, or None for the five of SUBTASKS")
    if lacking := [path.name for path in folders if not path.is_dir()]:
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise ItemError(
            f"{root} has no folder {', '.join(lacking)}; it holds {', '.join(names[:15]) or 'nothing'}",
            needed="the BLINK layout: a folder for every subtask, with val-*.parquet or val*.json",
            cause="the parent or a subfolder was given, or only some subtasks were downloaded",
            fix="give the folder that holds them, or name those that are there with `subtasks=`",
        )
    return folders


def _candidates(folder: Path) -> list[Path]:
    """The files of the split `val`."""
    return sorted(path for path in folder.glob("val*") if path.suffix in _READERS)


def _files(folder: Path) -> list[Path]:
    """The files of the split `val`, all of one kind."""
    paths = _candidates(folder)
    kinds = sorted({path.suffix for path in paths})
    if len(kinds) != 1:
        raise ItemError(
            f"{folder} holds {' and '.join(kinds) if kinds else 'no'} files of the split val",
            needed="val-*.parquet, or val*.json with its images",
            cause="the same rows twice" if kinds else "only the split test was downloaded, whose answers are hidden",
            fix="move one kind away" if kinds else "download the split val",
        )
    return paths


def _parquet_rows(path: Path) -> Iterator[Mapping]:
    """The rows, with images as a mapping of `bytes` and `path`."""
    try:
        from datasets import IterableDataset
    except ImportError as error:
        raise SettingError(
            f"{path} is a parquet file, and the library `datasets` is not installed",
            needed="datasets 5",
            fix="pip install 'prismlens[data]'",
        ) from error
    # Streaming leaves nothing but a lock file in the library's cache, so the cache is a folder that goes away.
    with tempfile.TemporaryDirectory() as cache:
        try:
            yield from IterableDataset.from_parquet(str(path), cache_dir=cache).decode(False)
        except ValueError as error:  # pyarrow's errors are ValueErrors
            raise _unreadable(path, error) from error


def _json_rows(path: Path) -> Iterator[Mapping]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also what broken UTF-8 raises
        raise _unreadable(path, error) from error
    if not isinstance(rows, list):
        raise _unreadable(path, TypeError(f"a {type(rows).__name__} instead of a list of rows"))
    yield from rows


_READERS: Mapping[str, Callable[[Path], Iterator[Mapping]]] = {".parquet": _parquet_rows, ".json": _json_rows}
"""The ending of a file -> how its rows are read."""


def _unreadable(path: Path, error: Exception) -> ItemError:
    return ItemError(
        f"{path} cannot be read: {error}",
        needed="a parquet file, or a JSON list of rows",
        cause="a download that broke off, or a Git LFS pointer",
        fix="download it again",
    )


def _text_of(row: object) -> object:
    """The row without its images."""
    return {key: value for key, value in row.items() if key not in _IMAGES} if isinstance(row, Mapping) else row


def _item(row: object, path: Path, groups: dict[str, str]) -> Item:
    """One row's item; `groups` maps a digest of image bytes to the first id that had them, and grows."""
    if not isinstance(row, Mapping):
        raise ItemError(f"a {type(row).__name__} instead of a row")
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise ItemError(f"{name}: {row.get(name)!r} is not a {kind.__name__}")
    images = [row[name] for name in _IMAGES if row.get(name) is not None]
    if len(images) != 1:
        raise ItemError(f"{len(images)} images, and an item has one")
    choices, answer = row["choices"], _ANSWER.fullmatch(row["answer"].strip())
    if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ItemError(f"choices: {choices!r} is not at least two texts")
    if answer is None or answer[1] not in LETTERS[: len(choices)]:
        raise ItemError(f"answer: {row['answer']!r} is not the letter of one of {len(choices)} choices")
    image, content = _image(images[0], path, row["idx"])
    digest = hashlib.blake2b(content).hexdigest()
    item = Item(
        image=image,
        question=row["question"],
        options=tuple(choices),
        answer=answer[1],
        group=groups.get(digest) or row["idx"],
        category=path.parent.name,
        id=row["idx"],
        meta={name: row.get(name) for name in ("prompt", "sub_task")},
    )
    groups.setdefault(digest, item.id)
    return item


def _image(source: object, path: Path, item_id: str) -> tuple[Image.Image | Path, bytes]:
    """The image, its header read, and its encoded bytes; `source` is a path, or a mapping with `bytes` or a `path`."""
    encoded = source.get("bytes") if isinstance(source, Mapping) else None
    if encoded is not None:
        try:
            return Image.open(io.BytesIO(encoded)), encoded
        except Exception as error:  # Pillow's readers raise whatever a damaged header provokes
            raise ItemError(f"the image cannot be decoded: {error}") from error
    name = source.get("path") if isinstance(source, Mapping) else source
    if not isinstance(name, str):
        raise ItemError(f"the image is {name!r}, neither bytes nor a path")
    image_size(path.parent / name, item_id)
    return path.parent / name, (path.parent / name).read_bytes()
