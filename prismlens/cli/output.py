"""What the commands share in printing: JSON that is alone on standard output, tables, bars only where one looks."""

from __future__ import annotations

import io
import json
import sys
from typing import Annotated, Any

import pandas as pd
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from prismlens.table import WIDTH

Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else on standard output")]
OnBad = Annotated[str, typer.Option(help="for rows of a file that cannot be used: raise, or drop them with a warning")]


def bars() -> bool:
    """Whether progress is shown: standard error is a terminal."""
    return sys.stderr.isatty()


def silence() -> None:
    """Without a terminal, switch off the bars of transformers too."""
    if not bars():
        transformers_logging.disable_progress_bar()


def emit(value: dict[str, Any]) -> None:
    """Print one object as JSON."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a frame as JSON can hold them, its named index among the columns; null where a number is missing."""
    named = frame.reset_index() if frame.index.name is not None else frame
    return json.loads(str(named.to_json(orient="records", double_precision=15)))


def grid(*headings: str, title: str | None = None, words: int = 1) -> Table:
    """An empty table in the style of all others: the first `words` columns are text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < words else "right", no_wrap=place >= words)
    return table


def text_of(table: Table, width: int = WIDTH) -> str:
    """The table as text, at most so wide whatever the terminal: a file has what a screen has."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False, emoji=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")
