"""The parts of a report that are not a table of conditions, as lines of text; computes nothing but their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlens.alignment import Alignment
from prismlens.decodability import Decodability
from prismlens.errors import PrismlensError

SHOWN = 5
"""Ids that are named; of more, only the number."""


def named(ids: Sequence[str]) -> str:
    """How many, and the first of them: ``(7): a, b, c, d, e, ...``."""
    return f"({len(ids)}): {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}"


def span(line: Mapping[str, Any], name: str, form: str = ".3f") -> str:
    """``0.871 [0.822, 0.910]`` from the columns ``name, name_low, name_high``; no interval where there is none."""
    if f"{name}_low" not in line:
        return f"{line[name]:{form}}"
    return f"{line[name]:{form}} [{line[f'{name}_low']:{form}}, {line[f'{name}_high']:{form}}]"


def alignment_lines(near: Alignment) -> list[str]:
    """One line a mode: the cosine to the own target, to another item's, and their difference."""
    lines: list[dict[str, Any]] = near.frame().reset_index().to_dict("records")
    return [
        f"Alignment, {line['mode']} ({line['n']:.0f} items): cosine to the own target {span(line, 'cosine')}, "
        f"to another item's {span(line, 'cosine_other')}, difference {span(line, 'difference', '+.3f')}"
        for line in lines
    ]


def gap_lines(map_: Decodability) -> list[str]:
    """The gap as published and against the best injected latent, or why there is none."""
    target = map_.results.manifest["target"]
    try:
        frame = map_.gap()
    except PrismlensError as error:
        return [f"Decodability of {target!r}: no gap: {error.given}"]
    lines: list[dict[str, Any]] = [line for line in frame.to_dict("records") if line["reading"] in ("paper", "best")]
    return [
        f"Decodability of {target!r}, {line['reading']} reading: {line['a']:.3f} at the answer's source, "
        f"{line['b']:.3f} at {line['role']} ({line['site']}); gap {line['gap']:+.3f} "
        f"[{line['low']:+.3f}, {line['high']:+.3f}]"
        for line in lines
    ]


def left_out_lines(part: str, reasons: Mapping[str, str]) -> list[str]:
    """What a part left out, a line a reason."""
    by_reason: dict[str, list[str]] = {}
    for item, why in reasons.items():
        by_reason.setdefault(why, []).append(item)
    return [f"{part}: left out, {why} {named(ids)}" for why, ids in by_reason.items()]


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """Parts that are not in the report, with the reason."""
    return [f"{part}: not measured: {why}" for part, why in missing.items()]
