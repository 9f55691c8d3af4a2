"""One question, one answer: does this model use its latents? Runs the tests, and keeps them together as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from prismlens.corruption import MARGIN, SLOT, VECTOR, CorruptionTest, corruption_test
from prismlens.errors import EditError
from prismlens.experiment import CLEAN
from prismlens.table import render
from prismlens.trace import PrismModel
from prismlens.types import Item
from prismlens.verdict import Verdict, judge

COUNTED = {
    "items_without_latents": "items whose model emitted no latents",
    "unparsed_clean": "items whose clean answer names no option, counted as wrong",
}
"""What a reader must know about single items: key of the manifest -> words."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured on one model; every number is computed from the per-item rows.

    Args:
        corruption: the corruption test.
    """

    corruption: CorruptionTest

    def frame(self) -> pd.DataFrame:
        """One line a condition; the columns are those of `CorruptionTest.frame`."""
        return self.corruption.frame()

    def table(self) -> str:
        """The frame as text to read; below it the items that were left out, without latents, or without an answer."""
        manifest = self.corruption.results.manifest
        counted = [(label, manifest[key]) for key, label in COUNTED.items() if manifest[key]]
        notes = [
            f"{label} ({len(ids)}): {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}\n" for label, ids in counted
        ]
        return render(self.frame(), self.title, self.corruption.left_out) + "".join(notes)

    @property
    def title(self) -> str:
        """The model, the items, and the majority rate."""
        manifest, majority = self.corruption.results.manifest, self.corruption.majority
        return f"{manifest['model']}: {len(manifest['items'])} items, majority rate {majority.rate:.3f}"

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

    def save(self, folder: str | Path) -> Path:
        """Write the rows and the manifest into a new folder, whole or not at all; returns its full path."""
        return self.corruption.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read a saved report back; everything is recomputed from its rows."""
        return cls(CorruptionTest.load(folder))


def prism(
    model: PrismModel,
    items: Sequence[Item],
    *,
    seed: int = 0,
    margin: float = MARGIN,
    on_missing: str = "drop",
    progress: bool = False,
) -> Report:
    """Ask a model whether it uses its latents.

    Args:
        model: a model with latents.
        items: with options and answers; those that share a scene share a group.
        seed: of noise, donors and intervals.
        margin: the change in accuracy that counts as none.
        on_missing: for items that a condition cannot be applied to: ``"drop"`` (counted in the table and named below
            it) or ``"raise"``.
        progress: show a bar.

    Raises:
        EditError: the model has no latents at all.
    """
    if model.hf.config.latent_entry == "none":
        raise EditError(
            f"{model.name} has no latents",
            needed="a model that emits latents",
            cause="it is a control that was trained without them",
            fix="ask another model; generate() runs this one",
        )
    test = corruption_test(model, items, seed=seed, margin=margin, on_missing=on_missing, progress=progress)
    return Report(test)
