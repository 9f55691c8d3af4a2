"""A comparison as one HTML file that opens offline, every string in it escaped; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from prismlens.compare.rows import CHANGE
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
from prismlens.markup import escaped, table

STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#1a1a1a}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}.wide{overflow-x:auto}p{max-width:75ch}"
    "img{max-width:100%;height:auto}table{font-variant-numeric:tabular-nums;white-space:nowrap}li{margin:.2em 0}"
)


def render(
    frame: pd.DataFrame, correlations: pd.DataFrame, manifest: dict[str, Any], pictures: Sequence[tuple[str, str]]
) -> str:
    """The page.

    Args:
        frame: from `Comparison.frame`.
        correlations: from `Comparison.correlations`.
        manifest: of the comparison.
        pictures: what each shows, and its PNG in base 64.
    """
    lines: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    n, seeds = len(manifest["items"]), manifest["seeds"]
    about = (
        f"{len(lines)} models on the same {n} items, {len(seeds)} seed{'s' * (len(seeds) != 1)}; the most frequent "
        f"answer is right on {manifest['majority']:.3f} of them. Intervals are 95 % and resample groups of items"
        f"{' and seeds' if len(seeds) > 1 else ''}."
    )
    parts = [
        _section("Models", _wide(_models(lines))),
        _section("What breaking the latents changes", _wide(_changes(lines, frame))),
        _section(
            "Across models", _wide(_correlations(correlations, manifest["reliance"])), f"<p>{escaped(EXPLAINED)}</p>"
        ),
        *(
            f'<p><img alt="{escaped(title)}" src="data:image/png;base64,{escaped(data)}"></p>'
            for title, data in pictures
        ),
        _section("Verdicts", _verdicts(manifest)),
        _section("Left out, and why", _list(notes(manifest, correlations)) or "<p>Nothing.</p>"),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>prismlens: models compared</title>'
        f"<style>{STYLE}</style></head><body><h1>Do these models use their latents?</h1><p>{escaped(about)}</p>"
        f"{''.join(parts)}</body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escaped(title)}</h2>{''.join(parts)}"


def _wide(part: str) -> str:
    return f'<div class="wide">{part}</div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(line)}</li>' for line in lines)}</ul>" if lines else ""


def _models(lines: Sequence[dict[str, Any]]) -> str:
    """The first published table, and the verdicts."""
    headings = ["model", *(heading for heading, _ in HEADINGS.values()), *VERDICTS.values()]
    cells = [
        [line["model"], *(span(line, measure, form) for measure, (_, form) in HEADINGS.items()),
         *(line[name] for name in VERDICTS)]
        for line in lines
    ]  # fmt: skip
    return table(headings, cells, shown=len(cells))


def _changes(lines: Sequence[dict[str, Any]], frame: pd.DataFrame) -> str:
    """The second published table, a line a condition."""
    conditions = conditions_of(frame)
    broken = [line for line in lines if any(pd.notna(line[name]) for name in conditions)]
    if not broken:
        return "<p>No model here has latents.</p>"
    cells = [[name.removeprefix(CHANGE), *(span(line, name, "+.3f") for line in broken)] for name in conditions]
    return table(["condition", *(line["model"] for line in broken)], cells, shown=len(cells))


def _correlations(frame: pd.DataFrame, reliance: str) -> str:
    lines = pearson_lines(frame)
    return table(CORRELATION_HEADINGS, [correlation_cells(line, reliance) for line in lines], shown=len(lines))


def _verdicts(manifest: dict[str, Any]) -> str:
    """Every judgement with its reason, of each seed."""
    seeds = manifest["seeds"]
    cells = [
        [
            name,
            *([seed] if len(seeds) > 1 else []),
            *(f"{one['word']}: {one['reason']}" for one in about["verdict"].values()),
        ]
        for name, many in manifest["models"].items()
        for seed, about in zip(seeds, many, strict=True)
    ]
    wrapped = "<style>.verdicts table{white-space:normal}</style>"
    headings = ["model", *(["seed"] if len(seeds) > 1 else []), *VERDICTS.values()]
    return f'{wrapped}<div class="verdicts">{table(headings, cells, shown=len(cells))}</div>'
