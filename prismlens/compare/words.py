"""The cells and lines that every rendering of a comparison shares; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prismlens.compare.rows import ACCURACY, CHANGE, COSINE_FORCED, COSINE_FREE, GAP_BEST, GAP_PAPER

HEADINGS: Mapping[str, tuple[str, str]] = {
    ACCURACY: ("accuracy", ".3f"),
    COSINE_FORCED: ("cosine, teacher-forced", "+.3f"),
    COSINE_FREE: ("cosine, free", "+.3f"),
    GAP_PAPER: ("gap, as published", "+.3f"),
    GAP_BEST: ("gap, best injected", "+.3f"),
}
"""Measure -> its heading, and how its numbers are written."""
VERDICTS = {"verdict_vector": "verdict, vectors", "verdict_slot": "verdict, slots"}
LABELS: Mapping[str, str] = {
    **{measure: heading for measure, (heading, _) in HEADINGS.items()}, "reliance": "reliance",
}  # fmt: skip
CORRELATION_HEADINGS = (
    "over models", "n", "r [95 %, items]", "p (orders)", "one left out", "two groups", "inside", "detectable",
)  # fmt: skip
EXPLAINED = (
    "r: Pearson; its interval is for other items and seeds, these models. p: permutation of the models, exact where "
    "there are 8 or fewer. One left out: range of r without each model in turn. Two groups: r of membership in one of "
    "two groups, cut where x parts best; * where it explains y at least as well as x does. Inside: pooled r within the "
    "two groups. Detectable: the smallest true correlation that so many models would show with power .8."
)


def label(measure: str, reliance: str) -> str:
    """A measure in words."""
    return f"reliance ({reliance})" if measure == "reliance" else LABELS.get(measure, measure)


def span(line: Mapping[str, Any], measure: str, form: str) -> str:
    """``.871 [.822, .910]``; a dash where it was not measured."""
    if pd.isna(line[measure]):
        return "-"
    mean, low, high = (_short(line[f"{measure}{end}"], form) for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]"


def correlation_cells(line: Mapping[str, Any], reliance: str) -> list[str]:
    """One line of a correlation frame as cells, or its reason in place of numbers."""
    pair = f"{label(line['x'], reliance)} ~ {label(line['y'], reliance)}"
    if pd.isna(line["r"]):
        return [pair, str(line["n"]), line["why"]]
    star = "*" if line["as_well"] is True else ""
    return [
        pair, str(line["n"]), span({**line, "r_low": line["low"], "r_high": line["high"]}, "r", "+.2f"),
        _short(line["p"], ".4f"),
        _range(line["loo_low"], line["loo_high"]), _number(line["r_indicator"]) + star, _number(line["within"]),
        _short(line["detectable"], ".2f"),
    ]  # fmt: skip


def conditions_of(frame: pd.DataFrame) -> list[str]:
    """The columns of a comparison's frame that are a condition's change."""
    return [name for name in frame.columns if name.startswith(CHANGE) and not name.endswith(("_low", "_high"))]


def pearson_lines(correlations: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of Pearson's r, as dictionaries; Spearman's are in the frame."""
    lines: list[dict[str, Any]] = correlations.to_dict("records")
    return [line for line in lines if line["method"] == "pearson"]


def notes(manifest: Mapping[str, Any], correlations: pd.DataFrame) -> list[str]:
    """What a reader must know: models that failed, parts not measured, items and resamples that were left out."""
    out = [f"{name}: left out of the comparison: {why}" for name, why in manifest["failed"].items()]
    for line in pearson_lines(correlations):
        pair = f"{label(line['x'], manifest['reliance'])} ~ {label(line['y'], manifest['reliance'])}"
        if line["undefined"] > 0:  # NaN, where there is no correlation, is not
            out.append(f"{pair}: {line['undefined']:.0f} resamples left out: a value was equal for all models")
        if line["why"] and pd.notna(line["r"]):
            out.append(f"{pair}: {line['why']}")
    for name, many in manifest["models"].items():
        for part, why in many[0]["missing"].items():
            out.append(f"{name}: {part}: not measured: {why}")
        silent = max(len(about["items_without_latents"]) for about in many)
        if silent and not many[0]["missing"]:
            out.append(f"{name}: {silent} items without latents")
        for condition, ids in many[0]["left_out"].items():
            out.append(f"{name}: {condition}: {len(ids)} items left out, without donor or position{_first(ids)}")
    return out


def _short(value: float, form: str) -> str:
    """A number without the zero before its point."""
    return f"{value:{form}}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{form}}"


def _first(ids: Sequence[str], shown: int = 3) -> str:
    return f": {', '.join(ids[:shown])}{', ...' if len(ids) > shown else ''}"


def _number(value: Any) -> str:
    return "-" if pd.isna(value) else _short(value, "+.2f")


def _range(low: Any, high: Any) -> str:
    return "-" if pd.isna(low) else f"{_number(low)} to {_number(high)}"
