"""Pieces of HTML that read well in a notebook, light or dark; escapes every string; knows no value of prismlens."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

INK = "var(--jp-content-font-color1, currentColor)"
FAINT = "var(--jp-content-font-color2, #767676)"
LINE = "var(--jp-border-color2, #9e9e9e66)"
ACCENT = "#0072B2"
FONT = "font-family:var(--jp-content-font-family, system-ui, sans-serif);font-size:13px;line-height:1.45"
"""Jupyter's own colours where it defines them, so that light and dark themes both work; else the page's."""


def escaped(value: object) -> str:
    """The text of a value with nothing left that a browser would read as markup."""
    return html.escape(str(value), quote=True)


def block(*parts: str) -> str:
    """Pieces of HTML under each other, in the notebook's font and colours."""
    return f'<div style="{FONT};color:{INK}">{"".join(parts)}</div>'


def columns(*parts: str) -> str:
    """Pieces of HTML side by side, wrapped where there is no room."""
    cells = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{cells}</div>'


def title(text: str, note: str = "") -> str:
    """A heading and perhaps a faint remark after it."""
    after = f' <span style="color:{FAINT}">{escaped(note)}</span>' if note else ""
    return f'<div style="margin:2px 0 6px"><b>{escaped(text)}</b>{after}</div>'


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values in two columns; values that are None are left out."""
    cell = f'style="padding:1px 12px 1px 0;vertical-align:top;border-bottom:1px solid {LINE};text-align:left"'
    rows = "".join(
        f'<tr><td {cell}><span style="color:{FAINT}">{escaped(name)}</span></td><td {cell}>{escaped(value)}</td></tr>'
        for name, value in pairs.items()
        if value is not None
    )
    return f'<table style="border-collapse:collapse;{FONT};color:{INK}">{rows}</table>'


def table(columns: Sequence[str], lines: Sequence[Sequence[object]], *, shown: int) -> str:
    """Lines under headings; after the first `shown` lines only their number."""
    cell = f'style="padding:2px 10px 2px 0;text-align:left;vertical-align:top;border-bottom:1px solid {LINE}"'
    head = "".join(f"<th {cell}>{escaped(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td {cell}>{escaped(v)}</td>' for v in line)}</tr>" for line in lines[:shown])
    rest = len(lines) - shown
    more = f'<div style="color:{FAINT}">and {rest} more</div>' if rest > 0 else ""
    return f'<table style="border-collapse:collapse;{FONT};color:{INK}"><tr>{head}</tr>{body}</table>{more}'


def interval_table(lines: Sequence[Mapping[Any, Any]], columns: Mapping[str, str], *, shown: int = 40) -> str:
    """Lines under headings, each number with its interval where the line has ``NAME_low`` and ``NAME_high``.

    Args:
        lines: name -> value.
        columns: name -> how it is written (``".3f"``; ``""`` for text); a missing number (None, NaN) stays blank.
        shown: lines; after them only their number.
    """

    def cell(line: Mapping[Any, Any], name: str, form: str) -> str:
        value, low, high = (line.get(f"{name}{end}") for end in ("", "_low", "_high"))
        if value is None or value != value:
            return ""
        ends = "" if low is None or low != low else f" [{low:{form}}, {high:{form}}]"
        return f"{value:{form}}{ends}"

    cells = [[cell(line, name, form) for name, form in columns.items()] for line in lines]
    return table([name.replace("_", " ") for name in columns], cells, shown=shown)


def picture(
    image: Image.Image,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    *,
    width: int = 240,
    label: str = "image",
    heat: Sequence[Sequence[float]] | None = None,
) -> str:
    """An image with boxes drawn on it, and perhaps a grid of shares in 0..1 laid over it; everything is in the text.

    Args:
        image: RGB.
        boxes: normalised xyxy.
        width: on the page, in pixels.
        label: read out by screen readers.
        heat: rows of a grid that covers the image evenly; larger is more opaque.
    """
    height = round(width * image.height / image.width)
    file = io.BytesIO()
    image.save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode()
    marks = "".join(
        f'<rect x="{x1 * width:.1f}" y="{y1 * height:.1f}" width="{(x2 - x1) * width:.1f}" '
        f'height="{(y2 - y1) * height:.1f}" fill="none" stroke="white" stroke-width="4"/>'
        f'<rect x="{x1 * width:.1f}" y="{y1 * height:.1f}" width="{(x2 - x1) * width:.1f}" '
        f'height="{(y2 - y1) * height:.1f}" fill="none" stroke="{ACCENT}" stroke-width="2"/>'
        for x1, y1, x2, y2 in boxes
    )
    return (
        f'<svg role="img" aria-label="{escaped(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">'
        f'<image href="data:image/png;base64,{source}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated"/>{_grid(heat, width, height)}{marks}</svg>'
    )


def bars(shares: Mapping[str, float], *, before: Mapping[str, float] | None = None, marked: str | None = None) -> str:
    """Shares in 0..1 as bars with their numbers; `before` draws another value of each behind it, as an outline.

    Args:
        shares: label -> share.
        before: label -> the share to compare with.
        marked: the label of the right one.
    """
    rows = []
    for name, share in shares.items():
        old = "" if before is None else (
            f'<div style="position:absolute;top:0;bottom:0;left:0;width:{100 * before[name]:.1f}%;'
            f'box-sizing:border-box;border:1.5px solid {INK};opacity:.55"></div>'
        )  # fmt: skip
        was = "" if before is None else f' <span style="color:{FAINT}">was {before[name]:.3f}</span>'
        tick = " ✓" if name == marked else ""
        rows.append(
            f'<tr><td style="padding:2px 8px 2px 0;text-align:left">{escaped(name)}{tick}</td>'
            f'<td style="padding:2px 8px"><div style="position:relative;width:160px;height:14px;background:{LINE}">'
            f'<div style="width:{100 * share:.1f}%;height:14px;background:{ACCENT}"></div>{old}</div></td>'
            f'<td style="padding:2px 0;text-align:left;white-space:nowrap">{share:.3f}{was}</td></tr>'
        )
    return f'<table style="border-collapse:collapse;{FONT};color:{INK}">{"".join(rows)}</table>'


def strip(pieces: Iterable[tuple[str, str, str]]) -> str:
    """A sequence as a row of coloured pieces: ``(text, colour, what it is)``, the last as a tooltip."""
    spans = "".join(
        f'<span title="{escaped(what)}" style="background:{colour};color:#111;border-radius:2px;padding:0 3px;'
        f'margin:1px;display:inline-block;white-space:pre">{escaped(text)}</span>'
        for text, colour, what in pieces
    )
    return f'<div style="{FONT};max-width:760px">{spans}</div>'


def _grid(heat: Sequence[Sequence[float]] | None, width: int, height: int) -> str:
    """The cells of a grid laid over the image."""
    if heat is None:
        return ""
    across, down = width / len(heat[0]), height / len(heat)
    return "".join(
        f'<rect x="{column * across:.1f}" y="{row * down:.1f}" width="{across:.1f}" height="{down:.1f}" '
        f'fill="#D55E00" fill-opacity="{0.75 * min(max(value, 0.0), 1.0):.3f}"/>'
        for row, values in enumerate(heat)
        for column, value in enumerate(values)
    )
