"""From the reports of one model to rows of one number an item and measure; runs nothing and averages nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from prismlens.alignment import FORCED, FREE, Alignment
from prismlens.corruption import CorruptionTest
from prismlens.decodability import Decodability
from prismlens.decodability.map import SOURCE
from prismlens.decodability.states import FINAL
from prismlens.errors import PrismlensError
from prismlens.experiment import CLEAN
from prismlens.prism import Report

ACCURACY, COSINE_FORCED, COSINE_FREE = "accuracy", "cosine_forced", "cosine_free"
GAP_PAPER, GAP_BEST = "gap_paper", "gap_best"
CHANGE = "change: "
"""What the measure of a condition begins with; its name follows."""
COLUMNS = ("model", "seed", "measure", "item", "group", "value")
NO_LATENTS = "the model has no latents"
"""Why the parts of a report are missing where only the accuracy was measured."""


def report_rows(name: str, seed: int, report: Report) -> pd.DataFrame:
    """All measures of one report, in long form.

    ``accuracy`` is whether the clean answer is right; ``cosine_forced`` and ``cosine_free`` the mean over steps of the
    cosine to the item's own target; ``gap_paper`` and ``gap_best`` whether the probe is right at the answer's source
    minus whether it is at the latent (last, as published; or the injected place that reads most, chosen on all items);
    ``change: <condition>`` right under the condition minus right without it, mean over draws where there are several.

    Args:
        name: of the model in the comparison.
        seed: of the report.
        report: what was measured.
    """
    parts = _outcomes(report.corruption)[: 1 if without_latents(report) else None]
    parts += [] if report.alignment is None else _cosines(report.alignment)
    parts += [] if report.decodability is None else _gaps(report.decodability)
    frame = pd.concat([values.reset_index().assign(measure=measure) for measure, values in parts], ignore_index=True)
    groups = report.corruption.results.rows.groupby("item").group.first()
    return frame.assign(model=name, seed=seed, group=frame["item"].map(groups)).reindex(columns=list(COLUMNS))


def without_latents(report: Report) -> bool:
    """Whether a report is of a model that has no latents, and holds its accuracy alone."""
    return NO_LATENTS in report.missing.values()


def verdict_words(report: Report) -> dict[str, dict[str, str]]:
    """The two judgements of a report, word and reason."""
    if without_latents(report):
        return {part: {"word": "no latents", "reason": "nothing to break"} for part in ("vector", "slot")}
    verdict = report.verdict
    both = {"vector": verdict.vector, "slot": verdict.slot}
    return {part: {"word": one.word, "reason": one.reason} for part, one in both.items()}


def _outcomes(test: CorruptionTest) -> list[tuple[str, pd.Series]]:
    """Right or wrong without any edit, and the change under each condition, by item."""
    right = test.results.rows.groupby(["condition", "item"], sort=False).correct.mean()
    clean = right[CLEAN]
    changes = [
        (f"{CHANGE}{name}", (right[name] - clean).dropna())
        for name in test.results.manifest["conditions"]
        if name in right.index.get_level_values(0)
    ]
    return [(ACCURACY, clean.rename("value")), *((name, one.rename("value")) for name, one in changes)]


def _cosines(near: Alignment) -> list[tuple[str, pd.Series]]:
    """The cosine of each item in each mode."""
    by_item = near.rows.groupby(["mode", "item"], sort=False).cosine.mean()
    modes = {COSINE_FORCED: FORCED, COSINE_FREE: FREE}
    return [(measure, by_item[mode].rename("value")) for measure, mode in modes.items()]


def _gaps(map_: Decodability) -> list[tuple[str, pd.Series]]:
    """The gap of each item in both readings; none where the map has no gap, which `gap_missing` explains."""
    if gap_missing(map_):
        return []
    lines: Sequence[dict[str, Any]] = map_.gap(n_resamples=1).to_dict("records")
    right = map_.rows.set_index(["role", "site", "item"]).correct.astype(float).sort_index()
    source = next(place for place in map_.places if place.role == SOURCE and place.site == FINAL)
    a = right[source.role, source.site]
    chosen = {GAP_PAPER: "paper", GAP_BEST: "best"}
    out = []
    for measure, reading in chosen.items():
        line = next(line for line in lines if line["reading"] == reading)
        out.append((measure, (a - right[line["role"], line["site"]]).rename("value")))
    return out


def gap_missing(map_: Decodability) -> str:
    """Why a map has no gap; empty where it has one."""
    try:
        map_.gap(n_resamples=1)
    except PrismlensError as error:
        return error.given
    return ""
