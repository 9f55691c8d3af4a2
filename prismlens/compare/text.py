"""A comparison as text to read: three tables and what is missing in them; computes nothing."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from prismlens.compare.words import (
    CORRELATION_HEADINGS,
    EXPLAINED,
    HEADINGS,
    VERDICTS,
    conditions_of,
    correlation_cells,
    notes,
    pearson_lines,
    span,
)

WIDTH = 120
SIDE_BY_SIDE = 4
"""Models beside each other in the table of conditions; further ones stand in tables below."""


def render(frame: pd.DataFrame, correlations: pd.DataFrame, manifest: dict[str, Any]) -> str:
    """The tables of a comparison.

    Args:
        frame: from `Comparison.frame`.
        correlations: from `Comparison.correlations`.
        manifest: of the comparison.
    """
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, markup=False, emoji=False, color_system=None)
    lines: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    n, seeds = len(manifest["items"]), manifest["seeds"]
    console.print(
        f"{len(lines)} models, {n} items, {len(seeds)} seed{'s' * (len(seeds) != 1)}, majority rate "
        f"{manifest['majority']:.3f}"
    )
    for start in range(0, len(lines), SIDE_BY_SIDE):
        console.print(_models(lines[start : start + SIDE_BY_SIDE], conditions_of(frame)))
    console.print(_correlations(correlations, manifest["reliance"]))
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"
    return text + "".join(f"{textwrap.fill(note, WIDTH)}\n" for note in (EXPLAINED, *notes(manifest, correlations)))


def _table(title: str, first: str, headings: Sequence[str]) -> Table:
    """An empty table; names give way, numbers never do."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        show_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _models(lines: Sequence[dict[str, Any]], conditions: Sequence[str]) -> Table:
    """Some models side by side: the first published table, the verdicts, and the second."""
    table = _table("", "", [line["model"] for line in lines])
    for measure, (heading, form) in HEADINGS.items():
        table.add_row(heading, *(span(line, measure, form) for line in lines))
    for name, heading in VERDICTS.items():
        table.add_row(heading, *(line[name] for line in lines))
    for name in conditions:
        table.add_row(name, *(span(line, name, "+.3f") for line in lines))
    return table


def _correlations(frame: pd.DataFrame, reliance: str) -> Table | str:
    """One line a pair of measures; where none has a correlation, the reasons alone."""
    lines = pearson_lines(frame)
    if all(pd.isna(line["r"]) for line in lines):
        return f"no correlations: {'; '.join(dict.fromkeys(line['why'] for line in lines))}"
    first, *rest = CORRELATION_HEADINGS
    table = _table("across models", first, rest)
    for line in lines:
        table.add_row(*correlation_cells(line, reliance))
    return table
