"""Refuses to compare what was not measured alike: other items, other answers, another margin; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prismlens.errors import ResultsError
from prismlens.experiment import CLEAN
from prismlens.prism import Report

SHOWN = 5


def require_alike(reports: Mapping[str, Sequence[Report]]) -> None:
    """Raise a ResultsError unless all reports are of the same items, each with the same answer and group.

    Args:
        reports: name of a model -> its reports, one a seed.
    """
    first_name = next(iter(reports))
    first = _facts(reports[first_name][0])
    margin = reports[first_name][0].corruption.margin
    for name, many in reports.items():
        for report in many:
            _require_items(first_name, first, name, _facts(report))
            if report.corruption.margin != margin:
                raise ResultsError(
                    f"{name!r} has a margin of {report.corruption.margin:g}, {first_name!r} one of {margin:g}",
                    needed="one margin: it decides what counts as no effect",
                    fix="measure them again with one `margin`",
                )


def _facts(report: Report) -> dict[str, tuple[str, str]]:
    """Item -> its answer and its group."""
    rows = report.corruption.results.rows
    clean = rows[rows.condition == CLEAN]
    return {str(i): (str(a), str(g)) for i, a, g in zip(clean["item"], clean.answer, clean.group, strict=True)}


def _require_items(
    first: str, items: Mapping[str, tuple[str, str]], name: str, other: Mapping[str, tuple[str, str]]
) -> None:
    """Raise a ResultsError that lists how two sets of items differ."""
    only = {first: [i for i in items if i not in other], name: [i for i in other if i not in items]}
    if any(only.values()):
        listed = "; ".join(f"only {who!r} has {_few(ids)}" for who, ids in only.items() if ids)
        raise ResultsError(
            f"reports of {first!r} ({len(items)} items) and {name!r} ({len(other)}) are of different items: {listed}",
            needed="the same items for every model: differences between items would pass for differences of models",
            cause="another `n`, seed or source of items",
            fix="measure them again on one list of items",
        )
    changed = [i for i in items if items[i] != other[i]]
    if changed:
        raise ResultsError(
            f"{first!r} and {name!r} have items of the same ids with other answers or groups: {_few(changed)}; "
            f"{changed[0]!r} has {items[changed[0]]} in the one and {other[changed[0]]} in the other",
            needed="the same items for every model",
            cause="lists of items that number them alike",
            fix="measure them again on one list of items",
        )


def _few(ids: Sequence[str]) -> str:
    """How many ids, and the first of them."""
    return f"{len(ids)} ({', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''})"
