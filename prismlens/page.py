"""Pieces of a page that opens offline, light or dark; escapes every string; knows no value of prismlens."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prismlens.errors import ResultsError
from prismlens.markup import escaped

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for the page: its own styles, and the pictures that are written in it. No script runs."""
STYLE = """
:root{color-scheme:light dark;--ink:#1a1a1a;--faint:#595959;--line:#c8c8c8;--page:#fff;--card:#f3f4f6;--accent:#0072B2}
@media (prefers-color-scheme:dark){
:root{--ink:#e8e8e8;--faint:#a8a8a8;--line:#4a4a4a;--page:#16181c;--card:#22252b;--accent:#56B4E9}}
body{margin:0 auto;max-width:62rem;padding:1.5rem;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;margin:0 0 .4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}
p{margin:.4rem 0;max-width:48rem}.faint{color:var(--faint)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}
.card{background:var(--card);border-left:4px solid var(--accent);padding:.7rem 1rem;border-radius:4px}
.card b{display:block;font-size:1.15rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem 1rem .25rem 0;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child{white-space:normal;overflow-wrap:anywhere}
img{max-width:100%;height:auto;background:#fff;border-radius:4px;margin:.6rem 0;display:block}
pre{background:var(--card);padding:.8rem;font-size:12px;white-space:pre-wrap;overflow-wrap:anywhere}
li{overflow-wrap:anywhere}summary{cursor:pointer;color:var(--accent)}
@media print{body{max-width:none}h2{break-after:avoid}img,table{break-inside:avoid}}
"""


def document(title: str, *sections: str) -> str:
    """The whole page; its policy forbids every request and every script."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escaped(title)}</h1>\n{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and pieces of HTML under it."""
    return f"<section><h2>{escaped(title)}</h2>\n{''.join(parts)}</section>\n"


def paragraph(text: str) -> str:
    """A faint paragraph: words that explain."""
    return f'<p class="faint">{escaped(text)}</p>\n'


def bullets(lines: Sequence[str]) -> str:
    """A list; nothing where there is no line."""
    return f"<ul>{''.join(f'<li>{escaped(line)}</li>' for line in lines)}</ul>\n" if lines else ""


def cards(entries: Mapping[str, tuple[str, str]]) -> str:
    """Boxes side by side: label -> a word in large letters, and what explains it."""
    boxes = "".join(
        f'<div class="card"><span class="faint">{escaped(label)}</span><b>{escaped(word)}</b>{escaped(why)}</div>'
        for label, (word, why) in entries.items()
    )
    return f'<div class="cards">{boxes}</div>\n'


def table(headings: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines under headings, which scroll where they are too wide."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def image(svg: str, label: str) -> str:
    """A picture from its SVG text, which stays apart from the page: its names and styles cannot meet the page's."""
    source = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escaped(label)}" src="data:image/svg+xml;base64,{source}">\n'


def details(title: str, text: str) -> str:
    """Text that opens on a click, as it is."""
    return f"<details><summary>{escaped(title)}</summary><pre>{escaped(text)}</pre></details>\n"


def write_page(path: str | Path, text: str) -> Path:
    """Write a page, in the place of an older one where there is one; returns its full path.

    Raises:
        ResultsError: it cannot be written; what was there is then still there.
    """
    target = Path(path).expanduser().resolve()
    draft = target.with_name(f".{target.name}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        raise ResultsError(f"{target} could not be written: {error}", fix="check space and permissions") from error
    finally:
        draft.unlink(missing_ok=True)
    return target
