"""compare(): measure every model on the same items, and put the reports side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from prismlens.compare.comparison import Comparison
from prismlens.compare.rows import CHANGE, gap_missing, report_rows, verdict_words
from prismlens.compare.same_items import require_alike
from prismlens.compare.sources import Plan, Source, reports_of, require_folder_names
from prismlens.corruption import MARGIN
from prismlens.errors import PrismlensError, SettingError
from prismlens.prism import Report
from prismlens.results import Results, environment_manifest
from prismlens.types import Item

ON_BAD = ("raise", "skip")
RELIANCE = "zero"
"""The condition whose loss of accuracy counts as reliance on the latents, as published."""


def compare(
    models: Mapping[str, Source],
    items: Sequence[Item] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    reports: str | Path | None = None,
    reliance: str = RELIANCE,
    margin: float = MARGIN,
    layers: Sequence[int] | None = None,
    on_bad: str = "raise",
    progress: bool = False,
) -> Comparison:
    """Put several models side by side: the two published tables with intervals, and correlations across models.

    Args:
        models: name -> a model, a shipped model's name, a model's folder, a `Report`, a saved report's folder, or
            a list of reports, one a seed. A model without latents has its accuracy compared and nothing else.
        items: what models are measured on; not needed where all are reports.
        seeds: of noise, donors, folds: each model is measured once under each. Intervals resample them too.
        reports: a folder that keeps every report as soon as it is there; the same call goes on from what it holds.
        reliance: condition whose loss of accuracy is called reliance.
        margin: the change in accuracy that counts as none.
        layers: blocks of the decodability maps, all by default; fewer are faster, and ``gap_best`` is the best of them.
        on_bad: for a model that cannot be loaded or measured: ``"raise"``, or ``"skip"`` to leave it out and name it.
        progress: show bars.

    Raises:
        SettingError: no models, no or repeated seeds, an unknown `reliance` or `on_bad`, or no items for a model.
        ResultsError: reports of different items, answers or margins.
        PrismlensError: whatever a model's measurement raises, with the model's name before it.
    """
    folder = None if reports is None else Path(reports).expanduser()
    plan = Plan(items, tuple(seeds), margin, None if layers is None else tuple(layers), folder, progress)
    _check(models, plan, on_bad)
    found: dict[str, tuple[Report, ...]] = {}
    failed: dict[str, str] = {}
    for name in (bar := tqdm(models, disable=not progress, desc="models", unit="model")):
        bar.set_description(name)
        try:
            found[name] = reports_of(name, models[name], plan)
        except PrismlensError as error:
            if on_bad == "raise":
                raise _named(name, error) from error
            failed[name] = "; ".join(line.strip() for line in str(error).splitlines())
    if not found:
        raise SettingError(f"none of {len(models)} models could be measured: {failed}", needed="at least one")
    require_alike(found)
    return Comparison(_results(found, failed, plan, reliance))


def _check(models: Mapping[str, Source], plan: Plan, on_bad: str) -> None:
    """Refuse what cannot be, before anything runs."""
    if not isinstance(models, Mapping) or not models:
        raise SettingError(
            f"models={models!r}", needed="name -> model", fix='pl.compare({"lvr": a, "n-lvr": b}, items)'
        )
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise SettingError(f"seeds={list(plan.seeds)}", needed="at least one seed, each once")
    if on_bad not in ON_BAD:
        raise SettingError(f"on_bad={on_bad!r}", needed=f"one of {', '.join(map(repr, ON_BAD))}")
    if plan.folder is not None:
        require_folder_names(list(models))


def _named(name: str, error: PrismlensError) -> PrismlensError:
    """The same error, with the model's name before what was given."""
    return type(error)(f"{name}: {error.given}", needed=error.needed, cause=error.cause, fix=error.fix)


def _results(found: Mapping[str, Sequence[Report]], failed: Mapping[str, str], plan: Plan, reliance: str) -> Results:
    """Rows of all reports, and what the tables say beside numbers."""
    rows = pd.concat(
        [
            report_rows(name, seed, one)
            for name, many in found.items()
            for seed, one in zip(plan.seeds, many, strict=True)
        ],
        ignore_index=True,
    )
    conditions = [one.removeprefix(CHANGE) for one in rows.measure.unique() if one.startswith(CHANGE)]
    if conditions and reliance not in conditions:
        raise SettingError(f"reliance={reliance!r}", needed=f"a condition: {', '.join(map(repr, conditions))}")
    first = next(iter(found.values()))[0]
    manifest = {
        "models": {name: [_about(report) for report in many] for name, many in found.items()},
        "seeds": list(plan.seeds), "items": first.corruption.results.manifest["items"],
        "margin": first.corruption.margin, "majority": first.corruption.majority.rate, "reliance": reliance,
        "failed": dict(failed), "environment": environment_manifest(),
    }  # fmt: skip
    return Results(rows, {"comparison": manifest})


def _about(report: Report) -> dict[str, Any]:
    """What is known of one report beside its rows."""
    manifest = report.corruption.results.manifest
    missing = dict(report.missing)
    if report.decodability is not None and (why := gap_missing(report.decodability)):
        missing["gap"] = why
    keys = ("model", "weights", "dtype", "latent_steps", "left_out", "items_without_latents", "unparsed_clean")
    return {**{key: manifest.get(key) for key in keys}, "verdict": verdict_words(report), "missing": missing}
