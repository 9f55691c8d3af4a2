"""What was measured on one model, as a table, in words, and on disk; runs nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import prismlens.report_folder as folders
from prismlens.alignment import Alignment
from prismlens.corruption import SLOT, VECTOR, CorruptionTest
from prismlens.decodability import Decodability
from prismlens.errors import SettingError
from prismlens.experiment import CLEAN
from prismlens.markup import block, escaped, facts, table, title
from prismlens.page import write_page
from prismlens.report.page import report_page
from prismlens.report.words import alignment_lines, gap_lines, left_out_lines, missing_lines, named
from prismlens.showing import show
from prismlens.table import CELLS, WIDTH, render
from prismlens.verdict import Verdict, judge

COUNTED = {
    "items_without_latents": "items whose model emitted no latents",
    "unparsed_clean": "items whose clean answer names no option, counted as wrong",
}
"""What a reader must know about single items: key of the manifest -> words."""
NO_OTHER = "without another item of a different image and answer to compare with"
"""Why `alignment` leaves out an item."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured on one model; every number is computed from the per-item rows.

    Args:
        corruption: the corruption test.
        alignment: of the latents with their targets; None where `missing` says why.
        decodability: the map of what probes read; None where `missing` says why.
        missing: ``"alignment"`` or ``"decodability"`` -> why it could not be measured.
        unaligned: id of an item that alignment left out before it began -> why.
    """

    corruption: CorruptionTest
    alignment: Alignment | None = None
    decodability: Decodability | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    unaligned: Mapping[str, str] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One line a condition; the columns are those of `CorruptionTest.frame`."""
        return self.corruption.frame()

    def table(self) -> str:
        """The frame as text to read; below it alignment, the gap, and whatever was left out or not measured."""
        notes = "".join(f"{wrapped}\n" for line in self.notes() for wrapped in _wrapped(line))
        return render(self.frame(), self.title, self.corruption.left_out) + notes

    def notes(self) -> list[str]:
        """Alignment, the gap, and whatever was left out or not measured, a line each."""
        lines = [] if self.alignment is None else alignment_lines(self.alignment)
        lines += [] if self.decodability is None else gap_lines(self.decodability)
        lines += self.counted()
        for part, reasons in self.left_out.items():
            lines += left_out_lines(part, reasons)
        return lines + missing_lines(self.missing)

    def counted(self) -> list[str]:
        """What a reader must know about single items of the corruption test, a line each."""
        manifest = self.corruption.results.manifest
        return [f"{label} {named(manifest[key])}" for key, label in COUNTED.items() if manifest[key]]

    @property
    def title(self) -> str:
        """The model, the items, and the majority rate."""
        manifest, majority = self.corruption.results.manifest, self.corruption.majority
        return f"{manifest['model']}: {len(manifest['items'])} items, majority rate {majority.rate:.3f}"

    @property
    def left_out(self) -> dict[str, dict[str, str]]:
        """Part -> id of an item that it left out -> why; parts that lack none are not listed.

        The parts are ``"alignment"`` and ``"decodability"``; ``"map"`` has roles instead of items. What a single
        condition left out stands in ``corruption.left_out``.
        """
        near = dict(self.unaligned)
        near |= {} if self.alignment is None else dict.fromkeys(self.alignment.left_out, NO_OTHER)
        probed = {} if self.decodability is None else self.decodability.dropped
        roles = {} if self.decodability is None else self.decodability.left_out
        found = {folders.ALIGNMENT: near, folders.DECODABILITY: probed, "map": roles}
        return {part: reasons for part, reasons in found.items() if reasons}

    @property
    def manifest(self) -> dict[str, Any]:
        """One manifest of everything: the corruption test's, and under ``report`` what the other parts add."""
        own = {"missing": dict(self.missing), "left_out": self.left_out}
        if self.decodability is not None:
            own[folders.DECODABILITY] = self.decodability.stored().manifest
        if self.alignment is not None:
            own[folders.ALIGNMENT] = {"seed": self.alignment.seed}
        return {**self.corruption.stored().manifest, folders.KEY: own}

    @property
    def verdict(self) -> Verdict:
        """Vector and slot, judged by the rules of `judge`."""
        frame, majority = self.frame(), self.corruption.majority.rate
        clean = frame.loc[CLEAN]
        accuracy = (
            f"{self.corruption.results.manifest['model']} is right on {clean.accuracy:.3f} "
            f"[{clean.low:.3f}, {clean.high:.3f}] of {int(clean.n)} items (majority rate {majority:.3f})."
        )
        vector, slot = (judge(frame, part, majority, self.corruption.margin) for part in (VECTOR, SLOT))
        return Verdict(vector, slot, accuracy)

    def plot(self, what: str = "profile") -> Any:
        """A picture: ``"profile"`` (of the conditions), ``"map"``, ``"gap"``, ``"alignment"`` or ``"geometry"``.

        Returns:
            A matplotlib figure; see `prismlens.plots`.

        Raises:
            SettingError: no such picture, its part is not in the report, or matplotlib is missing.
        """
        import prismlens.plots as plots

        drawn: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "profile": (self.corruption, plots.corruption_profile),
            "map": (self.decodability, plots.decodability_map),
            "gap": (self.decodability, plots.gap_profile),
            "alignment": (self.alignment, plots.alignment_floors),
            "geometry": (self.alignment, plots.latent_geometry),
        }
        part, draw = drawn.get(what, (None, None))
        if part is None or draw is None:
            raise SettingError(
                f"a picture of {what!r}",
                needed=f"one of {', '.join(repr(name) for name, (part, _) in drawn.items() if part is not None)}",
                cause="; ".join(missing_lines(self.missing)),
            )
        return draw(part)

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one page that opens offline, light or dark; returns its full path.

        Raises:
            ResultsError: the file cannot be written.
            SettingError: matplotlib is missing.
        """
        return write_page(path, report_page(self))

    def show(self) -> None:
        """The verdict and the conditions: as a table in a notebook, as text elsewhere."""
        show(self, f"{self.table()}\n{self.verdict}")

    def _repr_html_(self) -> str:
        verdict = self.verdict
        judged = {"injected vectors": str(verdict.vector), "slots (keys and values)": str(verdict.slot)}
        lines: list[dict[str, Any]] = self.frame().reset_index().to_dict("records")
        cells = [[line["condition"], *(cell(line) for cell in CELLS.values())] for line in lines]
        notes = "".join(f"<div>{escaped(line)}</div>" for line in self.notes())
        return block(title(self.title), facts(judged), table(["condition", *CELLS], cells, shown=len(cells)), notes)

    def save(self, folder: str | Path) -> Path:
        """Write the rows and manifests of all parts into a new folder, whole or not at all; returns its full path."""
        about = {"missing": dict(self.missing), "unaligned": dict(self.unaligned)}
        return folders.save(folder, about, self.corruption, self.alignment, self.decodability)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read a saved report back; everything is recomputed from its rows.

        A saved corruption test is read too: its report has no other parts, and says so.

        Raises:
            ResultsError: a file is missing, cut short, or changed since it was saved.
        """
        about, corruption, near, map_ = folders.load(folder)
        return cls(corruption, near, map_, **about)


def _wrapped(line: str) -> list[str]:
    """A line of text in lines that fit the table; ids are never cut."""
    return textwrap.wrap(line, WIDTH, break_on_hyphens=False, break_long_words=False)
