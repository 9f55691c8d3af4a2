"""From what the caller named to reports: measures models, reads saved reports, keeps and finds again what is done."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismlens.compare.rows import NO_LATENTS
from prismlens.corruption import corruption_test
from prismlens.errors import ResultsError, SettingError
from prismlens.interventions import Edit, Identity
from prismlens.positions import prompt
from prismlens.prism import Report, prism
from prismlens.results import MANIFEST
from prismlens.trace import PrismModel, load
from prismlens.types import Item

Source = PrismModel | Report | str | Path | Sequence[Report]
"""A model, its name or folder; or a report, a saved one's folder, or one report a seed."""

UNCHANGED = {"no-op": (Edit(Identity(), site="blocks.0.hook_resid_post", positions=prompt),)}
"""The one condition of a model that has no latents to break."""


@dataclass(frozen=True)
class Plan:
    """How models are measured.

    Args:
        items: the same for all; None where only reports are compared.
        seeds: one report of each model under each.
        margin: the change in accuracy that counts as none.
        layers: blocks of the decodability map; None for all.
        folder: where reports are kept as soon as they are there; None keeps none.
        progress: show bars.
    """

    items: Sequence[Item] | None
    seeds: tuple[int, ...]
    margin: float
    layers: tuple[int, ...] | None
    folder: Path | None
    progress: bool


def reports_of(name: str, source: Source, plan: Plan) -> tuple[Report, ...]:
    """The reports of one model, one a seed; measured where they are not there yet.

    Raises:
        SettingError: no items to measure on, or another number of reports than seeds.
        ResultsError: a kept report is of other weights, items or settings.
    """
    if isinstance(source, Report):
        source = [source]
    elif isinstance(source, str | Path):
        source = [Report.load(source)] if is_report(source) else load(str(source))
    if isinstance(source, PrismModel):
        return tuple(_report(name, source, seed, plan) for seed in plan.seeds)
    if len(source) != len(plan.seeds):
        raise SettingError(
            f"{len(source)} reports and {len(plan.seeds)} seeds {list(plan.seeds)}",
            needed="one report a seed, in their order",
            fix="give a list of reports, and `seeds` of the same length",
        )
    return tuple(source)


def is_report(path: str | Path) -> bool:
    """Whether a folder holds saved results, whole or damaged, rather than a model."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def folder_name(name: str) -> str:
    """A name of a model as the name of one folder: whatever could leave the folder becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"


def require_folder_names(names: Sequence[str]) -> None:
    """Raise a SettingError where two names would be kept in one folder."""
    by_folder: dict[str, str] = {}
    for name in names:
        other = by_folder.setdefault(folder_name(name), name)
        if other != name:
            raise SettingError(
                f"{other!r} and {name!r} would both be kept in {folder_name(name)!r}", needed="names that differ more"
            )


def _report(name: str, model: PrismModel, seed: int, plan: Plan) -> Report:
    """The report under one seed: read where it is kept, else measured, and kept."""
    if plan.items is None:
        raise SettingError(
            "no items", needed="`items`: this is a model, not a report", fix='items = pl.load_items("shapes", n=200)'
        )
    part = f"seed-{seed}" + ("" if plan.layers is None else f"-layers-{'-'.join(map(str, plan.layers)) or 'none'}")
    kept = None if plan.folder is None else plan.folder / folder_name(name) / part
    if kept is not None and is_report(kept):
        report = Report.load(kept)
        _require_kept(kept, report, _expected(model, seed, plan))
        return report
    report = _measured(model, plan.items, seed, plan)
    if kept is not None:
        report.save(kept)
    return report


def _measured(model: PrismModel, items: Sequence[Item], seed: int, plan: Plan) -> Report:
    """A report; of a model without latents only how often it is right."""
    if model.hf.config.latent_entry != "none":
        return prism(model, items, seed=seed, margin=plan.margin, layers=plan.layers, progress=plan.progress)
    test = corruption_test(model, items, conditions=UNCHANGED, margin=plan.margin, seed=seed, progress=plan.progress)
    return Report(test, missing=dict.fromkeys(("alignment", "decodability"), NO_LATENTS))


def _expected(model: PrismModel, seed: int, plan: Plan) -> Mapping[str, object]:
    """What a kept report must be of."""
    ids = [item.id for item in plan.items or ()]
    return {"weights": model.revision, "items": ids, "seed": seed, "margin": plan.margin}


def _require_kept(folder: Path, report: Report, expected: Mapping[str, object]) -> None:
    """Raise a ResultsError unless a kept report is what would be measured now."""
    manifest, test = report.corruption.results.manifest, report.corruption
    found = {"weights": manifest["weights"], "items": manifest["items"], "seed": test.seed, "margin": test.margin}
    other = [key for key, value in expected.items() if found[key] != value]
    if other:
        raise ResultsError(
            f"{folder} holds a report with other {' and '.join(other)}",
            needed="reports of these models, items and settings",
            cause="the folder was filled by another comparison",
            fix="give another folder, or remove that one yourself",
        )
