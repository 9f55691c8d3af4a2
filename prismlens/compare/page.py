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
from prismlens.page import bullets, document, image, paragraph, section, table


def render(
    frame: pd.DataFrame, correlations: pd.DataFrame, manifest: dict[str, Any], pictures: Sequence[tuple[str, str]]
) -> str:
    """The page.

    Args:
        frame: from `Comparison.frame`.
        correlations: from `Comparison.correlations`.
        manifest: of the comparison.
        pictures: what each shows, and its SVG text.
    """
    lines: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    n, seeds = len(manifest["items"]), manifest["seeds"]
    about = (
        f"{len(lines)} models on the same {n} items, {len(seeds)} seed{'s' * (len(seeds) != 1)}; the most frequent "
        f"answer is right on {manifest['majority']:.3f} of them. Intervals are 95 % and resample groups of items"
        f"{' and seeds' if len(seeds) > 1 else ''}."
    )
    words = [[line[name] for name in ("model", *VERDICTS)] for line in lines]
    left = notes(manifest, correlations)
    return document(
        "Do these models use their latents?",
        paragraph(about),
        section("Models", _models(lines)),
        section("What breaking the latents changes", _changes(lines, frame)),
        section("Across models", _correlations(correlations, manifest["reliance"]), paragraph(EXPLAINED),
                *(image(svg, title) for title, svg in pictures)),
        section("Verdicts", table(["model", *VERDICTS.values()], words), bullets(_verdicts(manifest))),
        section("Left out, and why", bullets(left) or paragraph("Nothing.")),
    )  # fmt: skip


def _models(lines: Sequence[dict[str, Any]]) -> str:
    """The first published table."""
    headings = ["model", *(heading for heading, _ in HEADINGS.values())]
    cells = [[line["model"], *(span(line, measure, form) for measure, (_, form) in HEADINGS.items())] for line in lines]
    return table(headings, cells)


def _changes(lines: Sequence[dict[str, Any]], frame: pd.DataFrame) -> str:
    """The second published table, a line a condition."""
    conditions = conditions_of(frame)
    broken = [line for line in lines if any(pd.notna(line[name]) for name in conditions)]
    if not broken:
        return paragraph("No model here has latents.")
    cells = [[name.removeprefix(CHANGE), *(span(line, name, "+.3f") for line in broken)] for name in conditions]
    return table(["condition", *(line["model"] for line in broken)], cells)


def _correlations(frame: pd.DataFrame, reliance: str) -> str:
    lines = pearson_lines(frame)
    return table(CORRELATION_HEADINGS, [correlation_cells(line, reliance) for line in lines])


def _verdicts(manifest: dict[str, Any]) -> list[str]:
    """Every judgement with its reason, of each seed."""
    seeds = manifest["seeds"]
    return [
        f"{name}{f', seed {seed}' if len(seeds) > 1 else ''}, {part}: {one['word']}: {one['reason']}"
        for name, many in manifest["models"].items()
        for seed, about in zip(seeds, many, strict=True)
        for part, one in about["verdict"].items()
    ]
