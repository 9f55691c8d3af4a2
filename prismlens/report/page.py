"""A report as one page that opens offline: pictures in it, nothing loaded from elsewhere, every string escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prismlens.errors import PrismlensError
from prismlens.page import bullets, cards, details, document, image, paragraph, section, table
from prismlens.report.words import alignment_lines, gap_lines, left_out_lines, missing_lines, named
from prismlens.table import CELLS

if TYPE_CHECKING:
    from prismlens.report.report import Report

PROFILE_NOTE = (
    "Accuracy under each condition and its paired change from the clean run, with 95 % intervals over groups. A "
    "condition counts as lost or as equivalent by its interval, never by its point."
)
MAP_NOTE = (
    "Held-out accuracy of linear probes. What can be read need not be used, and what no linear probe reads may be used "
    "all the same: only the corruption test speaks of use."
)
GAP_NOTE = (
    "The gap is the probe's accuracy at the answer's source minus that at a latent. 'paper' reads the last latent as "
    "published, 'best' the injected place where most is read."
)
ALIGNMENT_NOTE = (
    "A cosine says little without its floor: vectors of one kind share a mean, so unrelated ones are alike too. "
    "And a latent may resemble its target without being used."
)


def report_page(report: Report) -> str:
    """The page's text: verdict, manifest, conditions, pictures, what was left out.

    Raises:
        SettingError: matplotlib is missing.
    """
    import prismlens.plots as plots

    near, map_ = report.alignment, report.decodability
    absent = {part: paragraph(f"Not measured: {why}") for part, why in report.missing.items()}
    return document(
        report.title,
        section("Verdict", _verdict(report)),
        section("Conditions", paragraph(PROFILE_NOTE), image(plots.svg(plots.corruption_profile(report.corruption)),
                "accuracy and change under each condition"), _conditions(report)),
        section("Where the answer can be read", absent.get("decodability", "") if map_ is None else (
            paragraph(MAP_NOTE) + _picture(lambda: plots.decodability_map(map_), "decodability map")
        )),
        section("The gap", absent.get("decodability", "") if map_ is None else (
            paragraph(GAP_NOTE) + bullets(gap_lines(map_)) + _picture(lambda: plots.gap_profile(map_), "gap")
        )),
        section("Alignment with the targets", absent.get("alignment", "") if near is None else (
            paragraph(ALIGNMENT_NOTE) + bullets(alignment_lines(near))
            + _picture(lambda: plots.alignment_floors(near), "cosine to targets and floors")
            + _picture(lambda: plots.latent_geometry(near), "geometry of the latents")
        )),
        section("Left out", _left_out(report)),
        section("Manifest", _manifest(report.manifest)),
    )  # fmt: skip


def _verdict(report: Report) -> str:
    """Both judgements, and how right the model is at all."""
    verdict = report.verdict
    judged = {"injected vectors": verdict.vector, "slots (keys and values)": verdict.slot}
    return paragraph(verdict.accuracy) + cards({name: (one.word, one.reason) for name, one in judged.items()})


def _conditions(report: Report) -> str:
    """The table of conditions, and below it what each left out."""
    lines: list[dict[str, Any]] = report.frame().reset_index().to_dict("records")
    cells = [[line["condition"], *(cell(line) for cell in CELLS.values())] for line in lines]
    return table(["condition", *CELLS], cells)


def _picture(draw: Callable[[], Any], label: str) -> str:
    """A picture, or why it cannot be drawn: a map may have no gap, an old report no geometry."""
    import prismlens.plots as plots

    try:
        return image(plots.svg(draw()), label)
    except PrismlensError as error:
        return paragraph(f"No picture of the {label}: {error.given}; needed: {error.needed}")


def _left_out(report: Report) -> str:
    """Every item and part that is not in a number above, with the reason."""
    lines = [f"{name}: without donor or position {named(ids)}" for name, ids in report.corruption.left_out.items()]
    lines += [line for part, reasons in report.left_out.items() for line in left_out_lines(part, reasons)]
    lines += report.counted() + missing_lines(report.missing)
    return bullets(lines) or paragraph("Nothing: every item is in every number.")


def _manifest(manifest: Mapping[str, Any]) -> str:
    """What a reader looks for first as a table, and everything as text."""
    first = ("model", "weights", "dtype", "device", "attention", "batch_size", "latent_steps")
    versions = manifest.get("environment", {})
    facts = [(name, manifest[name]) for name in first if name in manifest]
    facts += [("seed", manifest["corruption_test"]["seed"]), ("items", len(manifest["items"])), *versions.items()]
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    return table(["", ""], facts) + details("the whole manifest", text)
