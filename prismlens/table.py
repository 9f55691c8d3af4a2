"""A table of conditions as text for people; computes nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

Line: TypeAlias = Mapping[str, Any]
"""One line of a corruption test's frame, by column."""
WIDTH = 120
"""Columns of text; the same everywhere, so that a table in a file looks like one on a screen."""


def _span(line: Line, value: str, low: str, high: str, form: str) -> str:
    """``0.87 [0.82, 0.91]``; nothing where it is missing."""
    if pd.isna(line[value]):
        return ""
    return f"{line[value]:{form}} [{line[low]:{form}}, {line[high]:{form}}]"


def _p(value: float) -> str:
    """A p-value to two digits, never a bare 0."""
    if math.isnan(value):
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _changed(line: Line) -> str:
    return "" if pd.isna(line["changed"]) else f"{int(line['changed'])} of {int(line['n'])}"


CELLS: Mapping[str, Callable[[Line], str]] = {
    "accuracy [95 %]": lambda line: _span(line, "accuracy", "low", "high", ".3f"),
    "change [95 %]": lambda line: _span(line, "change", "change_low", "change_high", "+.3f"),
    "p (Holm)": lambda line: _p(line["p_holm"]),
    "changed": _changed,
    "follow donor": lambda line: _span(line, "follow", "follow_low", "follow_high", ".2f"),
}
"""Heading -> what stands below it, from one line of a corruption test's frame."""


def render(frame: pd.DataFrame, title: str, left_out: Mapping[str, Sequence[str]]) -> str:
    """The table as text, one line a condition, with the items that were left out named below it.

    Args:
        frame: from `CorruptionTest.frame`.
        title: stands above.
        left_out: condition -> ids of the items that it could not be applied to.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    table.add_column("condition", overflow="fold")  # a long name gives way, never a number
    for heading in CELLS:
        table.add_column(heading, justify="right", no_wrap=True)
    lines: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    for line in lines:
        table.add_row(line["condition"], *(cell(line) for cell in CELLS.values()))
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, markup=False, emoji=False, color_system=None)
    console.print(table)
    for line in lines:
        if line["bit_equal"] is True and line["same_output"] < line["n"]:
            differ = f"{line['n'] - line['same_output']:.0f} of {line['n']:.0f} items differ"
            console.print(f"CONTROL FAILED: {line['condition']} must be bit-equal to the clean run, and {differ}")
    for name, ids in left_out.items():
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        console.print(f"{name}: {len(ids)} items left out, without donor or position: {shown}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"
