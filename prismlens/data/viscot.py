"""Reads a file of Visual-CoT rows one at a time, and lists those it cannot use; knows nothing of models."""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import pandas as pd
from jaxtyping import Int

from prismlens.data.images import open_image
from prismlens.data.rows import BadRow, check_on_bad, excerpt, settle
from prismlens.data.viscot_row import TrainingRow, parse_row
from prismlens.errors import ItemError

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""White space, and the mark with which some programs begin a UTF-8 file."""
_LVR_LIST = {"data_path", "image_folder"}
"""Fields of the list of data files from which LVR's training starts."""


@dataclass(frozen=True)
class _Lines:
    """JSON lines, left on disk; a key is the byte at which a row starts. Blank lines are no rows."""

    path: Path
    stamp: tuple[int, int]

    def records(self) -> Iterator[tuple[int, int, object]]:
        start = 0
        with self.path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip(_BLANK):
                    yield line, start, raw
                start += len(raw)

    def read(self, key: int) -> object:
        if not self.path.is_file() or _stamp(self.path) != self.stamp:
            raise ItemError(
                f"{self.path} has changed since it was indexed",
                needed="the same file",
                cause="another program writes or has removed it",
                fix="read it again with `read_viscot`",
            )
        with self.path.open("rb") as file:
            file.seek(key)
            return file.readline()


@dataclass(frozen=True)
class _List:
    """A JSON list, held in memory; a key is a place in it."""

    rows: tuple[object, ...]

    def records(self) -> Iterator[tuple[int, int, object]]:
        for place, row in enumerate(self.rows):
            yield place + 1, place, row

    def read(self, key: int) -> object:
        return self.rows[key]


_Source: TypeAlias = _Lines | _List
"""Rows that are found again by their keys. `records` gives line, key and raw row in order, `read` one raw row."""


@dataclass(frozen=True, eq=False)
class VisCotFile(Sequence[TrainingRow]):
    """The usable rows of a file, read from it one at a time: `file[i]`, or `file.opened(i)` with the picture decoded.

    Args:
        path: the file.
        image_root: the folder at which the rows' image paths start.
        bad: the rows left out, with the columns file, line, reason and text.
        lines: for each row its line in the file.
        categories: for each row its `dataset`.
    """

    path: Path
    image_root: Path
    bad: pd.DataFrame
    lines: Int[np.ndarray, "row"]
    categories: tuple[str, ...]
    _source: _Source = field(repr=False)
    _keys: Int[np.ndarray, "row"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, place: int) -> TrainingRow: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[TrainingRow]: ...

    def __getitem__(self, place: int | slice) -> TrainingRow | Sequence[TrainingRow]:
        """Row `place` with the path of its picture, which is not opened; or the rows of a slice.

        Raises:
            ItemError: the file has changed since it was indexed.
            IndexError: there is no such row.
        """
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[operator.index(place)]
        raw = self._source.read(int(self._keys[index]))
        return parse_row(raw, self.path.stem, int(self.lines[index]), self.image_root)

    def opened(self, place: int) -> TrainingRow:
        """Row `place` with its picture decoded: upright, RGB.

        Raises:
            ItemError: as `file[place]`, or the picture is missing or damaged; the message names the line.
            IndexError: there is no such row.
        """
        row = self[place]
        try:
            return replace(row, item=replace(row.item, image=open_image(row.item.image, row.item.id)))
        except ItemError as error:
            raise ItemError(
                f"{self.path}, line {row.line}: {error.given}", needed=error.needed, cause=error.cause, fix=error.fix
            ) from error


def read_viscot(path: str | Path, *, image_root: str | Path | None = None, on_bad: str = "raise") -> VisCotFile:
    """A file of Visual-CoT rows in the form of LVR.

    JSON lines are indexed by byte offset and stay on disk, so the file may be larger than memory; a JSON list is loaded
    whole. Every row is checked here, up to whether its image file exists; pictures are decoded by `opened`, or
    by whoever uses the items.

    Usable is a row with one image, one human turn that holds ``<image>`` once, then one gpt turn with one ``<lvr>`` for
    every box and text after the last; boxes as a list of lists, as one list of four numbers, or in a further list for
    the image. An item's id is the row's `id`, or else the file's name and the line: ``"train-12"``.

    Args:
        path: the file; a list is told from lines by its first character.
        image_root: where relative image paths start; the file's folder if None.
        on_bad: ``"raise"`` at unusable rows, or ``"drop"`` them into `bad`.

    Raises:
        ItemError: the file is missing or not JSON, or rows are unusable; the message counts them and shows five.
        SettingError: an unknown `on_bad`.
    """
    check_on_bad(on_bad)
    path = Path(path)
    root = path.parent if image_root is None else Path(image_root)
    source = _source(path)
    bad: list[BadRow] = []
    good: list[tuple[int, int, str]] = []
    for line, key, raw in source.records():
        try:
            category = parse_row(raw, path.stem, line, root, must_exist=True).item.category
        except ItemError as error:
            bad.append(BadRow(path.name, line, error.given, excerpt(raw)))
        else:
            good.append((line, key, sys.intern(category)))  # few names, many rows
    table = settle(
        str(path),
        bad,
        len(bad) + len(good),
        on_bad=on_bad,
        cause=f"image paths start elsewhere than at {root}"
        if any("no image file" in row.reason for row in bad)
        else "",
        fix="correct the rows, or give `image_root=` where images were not found",
    )
    lines, keys, categories = zip(*good, strict=True)
    return VisCotFile(path, root, table, np.array(lines), categories, source, np.array(keys))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _source(path: Path) -> _Source:
    """The file as a list if it begins with a bracket, else as lines."""
    if not path.is_file():
        raise ItemError(f"{path} is no file", needed="a JSON list or JSON lines", fix="check the path")
    with path.open("rb") as file:
        start = file.read(4096).lstrip(_BLANK)
    if not start.startswith(b"["):
        return _Lines(path, _stamp(path))
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also what broken UTF-8 raises
        raise ItemError(
            f"{path} is not JSON: {error}",
            needed="a JSON list or JSON lines",
            cause="a download that broke off",
            fix="download it again",
        ) from error
    if rows and isinstance(rows[0], dict) and rows[0].keys() >= _LVR_LIST:
        raise ItemError(
            f"{path} lists {len(rows)} data files, not rows",
            needed="a file of rows",
            cause="it is the list that LVR's training starts from",
            fix=f"read_viscot({rows[0]['data_path']!r}, image_root={rows[0]['image_folder']!r})",
        )
    return _List(tuple(rows))
