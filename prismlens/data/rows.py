"""Keeps account of the rows of a file that cannot be used, and refuses or drops them; knows no layout of any file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from prismlens.errors import ItemError, SettingError

ON_BAD = ("raise", "drop")
"""What to do about rows that cannot be used."""
_SHOWN = 5
_EXCERPT = 80
_COLUMNS = ("file", "line", "reason", "text")


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        file: the file's name.
        line: the row's line in the file, or its place in a JSON list; the first is 1.
        reason: what is wrong with it.
        text: how the row begins.
    """

    file: str
    line: int
    reason: str
    text: str


def excerpt(row: object) -> str:
    """The first 80 characters of a row: of its text, or of its JSON."""
    if isinstance(row, bytes):
        text = row[: 4 * _EXCERPT].decode("utf-8", errors="replace")
    else:
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    text = text.strip()
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."


def check_on_bad(on_bad: str) -> None:
    """Refuse any wish that is not in `ON_BAD`.

    Raises:
        SettingError: it is something else.
    """
    if on_bad not in ON_BAD:
        raise SettingError(f"on_bad = {on_bad!r}", needed=f"one of {', '.join(map(repr, ON_BAD))}")


def settle(
    source: str, bad: Sequence[BadRow], total: int, *, on_bad: str, cause: str = "", fix: str = ""
) -> pd.DataFrame:
    """The bad rows as a table with the columns file, line, reason and text, if they may be dropped.

    Args:
        source: what was read, as an error calls it.
        bad: the rows that cannot be used.
        total: how many rows there are, bad ones included.
        on_bad: ``"raise"``, or ``"drop"`` to go on without them.
        cause: the likely reason, when one is known.
        fix: what to do, besides dropping them.

    Raises:
        ItemError: there are bad rows and `on_bad` is ``"raise"``, or no row can be used. The message counts them and
            shows the first five.
        SettingError: an unknown `on_bad`.
    """
    check_on_bad(on_bad)
    if total == 0:
        raise ItemError(f"{source} holds no rows", needed="at least one row", cause="an empty file", fix=fix)
    if bad and (on_bad == "raise" or len(bad) == total):
        shown = [f"\n    {row.file}, line {row.line}: {row.reason}" for row in bad[:_SHOWN]]
        more = [f"\n    and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        spare = "" if len(bad) == total else "on_bad='drop' leaves them out and lists them in `bad`"
        raise ItemError(
            f"{len(bad)} of {total} rows of {source} cannot be used:{''.join(shown + more)}",
            needed="usable rows only" if spare else "at least one usable row",
            cause=cause,
            fix="; ".join(filter(None, (fix, spare))),
        )
    return pd.DataFrame([asdict(row) for row in bad], columns=list(_COLUMNS))
