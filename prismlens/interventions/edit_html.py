"""An edit as an HTML table for notebooks, everything escaped; knows no edit, only its parts."""

from __future__ import annotations

import inspect
from html import escape

from prismlens.interventions.operation import Operation, Structural


def question(op: Operation | Structural) -> str:
    """The question that the operation answers, from its docstring; empty where an operation states none."""
    paragraphs = (inspect.getdoc(type(op)) or "").split("\n\n")
    asked = [" ".join(text.split()) for text in paragraphs if text.startswith("Question:")]
    return asked[0].removeprefix("Question:").strip() if asked else ""


def table(op: Operation | Structural, positions: str | None, site: str | None, mode: str, seed: int) -> str:
    """One row a part; parts that do not apply (None) are left out."""
    parts = {
        "operation": str(op),
        "question": question(op),
        "positions": positions,
        "site": site,
        "mode": mode,
        "seed": str(seed),
    }
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in parts.items()
        if text
    )
    return f"<table>{rows}</table>"
