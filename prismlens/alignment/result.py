"""What an alignment measurement found: rows of items, and the frames made of them; measures nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

import prismlens.stats as stats
from prismlens.markup import block, interval_table, title

FREE, FORCED, TARGET = "free", "teacher-forced", "target"
MEASURES = (
    "cosine", "cosine_other", "cosine_mean", "cosine_box", "boxes_below", "centred", "mse", "mse_other", "mse_mean",
    "reciprocal_rank", "recall", "reciprocal_rank_chance", "recall_chance",
)  # fmt: skip
"""The columns of rows that a frame averages."""
GAPS = {
    "difference": "cosine_other", "difference_mean": "cosine_mean", "difference_box": "cosine_box",
}  # fmt: skip
"""Column of the frame -> the floor that is taken off ``cosine``, item by item."""
SHOWN = {
    "mode": "", "n": ".0f", "cosine": ".3f", "cosine_other": ".3f", "difference": "+.3f", "cosine_mean": ".3f",
    "cosine_box": ".3f", "recall": ".3f", "recall_chance": ".3f",
}  # fmt: skip
"""The columns that a notebook shows, and how."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """One row an item, mode and step: ``item, group, mode, step, stage``, the measures below, and ``other``.

    ``cosine, mse`` are to the item's own target. Floors: ``cosine_other, mse_other`` to the same step's target of
    another item (``other``), whose image and answer are different and whose category is the same; ``cosine_mean,
    mse_mean`` to the mean target of all other groups; ``cosine_box`` to the target of the best other box of the same
    image, and ``boxes_below`` the share of other boxes that are less alike than the own one (chance 0.5), over
    ``boxes`` of them. ``centred``: see `centred_cosine` (0 for a state that knows nothing of its item). ``rank`` of the
    own target among ``candidates`` (itself and the targets of other groups, of all items), with ``reciprocal_rank``
    and ``recall`` (rank 1) and what chance would give. What does not exist is missing: another box where the own one
    fills the image, ``centred`` with fewer than four groups.

    Args:
        rows: the rows; a frame has the columns of those measures that they have.
        left_out: ids of the items without such another item.
        seed: of the intervals.
        geometry: one line a mode (and ``"target"``) and step: ``n``; ``cka`` to the targets (see `debiased_cka`),
            ``cross_cosine`` (see `cross_item_cosine`), ``participation_ratio``, each with a jackknife interval over
            groups, and ``rank_90``, the components that hold 90 % of the variance. A collapsed latent has a high
            ``cross_cosine`` and few dimensions: read it beside the targets' own line, measured on the same items.
        lengths: one row an item and kind: the mean ``norm`` of its latents, targets, image and text embeddings.
    """

    rows: pd.DataFrame
    left_out: tuple[str, ...] = ()
    seed: int = 0
    geometry: pd.DataFrame = field(default_factory=pd.DataFrame)
    lengths: pd.DataFrame = field(default_factory=pd.DataFrame)

    def frame(self, *, by_stage: bool = False, by_step: bool = False) -> pd.DataFrame:
        """One line a mode: the mean of every measure, and the paired differences of the cosine to its floors.

        With `by_stage` one line a mode and stage of the latent block, with `by_step` one a mode, stage and step.
        ``difference`` is own minus other item (``p`` is its own), ``difference_mean`` own minus mean target,
        ``difference_box`` own minus best other box (over the ``n_box`` items that have one). Intervals (``_low``,
        ``_high``) resample groups. A cosine says little without its floor: vectors of one kind share a mean, so
        unrelated ones are alike too.
        """
        by = ["mode", *(["stage"] if by_stage or by_step else []), *(["step"] if by_step else [])]
        lines = [
            dict(zip(by, rows.iloc[0][by], strict=True)) | self._line(rows)
            for _, rows in self.rows.groupby(by, sort=False)
        ]
        return pd.DataFrame(lines).set_index(by)

    def _repr_html_(self) -> str:
        note = f"{self.rows.item.nunique()} items, {len(self.left_out)} without another to compare with"
        return block(title("Alignment", note), interval_table(self.frame().reset_index().to_dict("records"), SHOWN))

    def norms(self) -> pd.DataFrame:
        """One line a kind of vector: mean ``norm`` over items with its interval, and its ratio to image and text."""
        lines = []
        for kind, rows in self.lengths.groupby("kind", sort=False):
            interval = stats.cluster_mean_interval(rows.norm.to_numpy(), rows.group, seed=self.seed)
            lines.append(
                {"kind": kind, "n": interval.n, "norm": interval.estimate, "norm_low": interval.low,
                 "norm_high": interval.high}
            )  # fmt: skip
        frame = pd.DataFrame(lines).set_index("kind")
        return frame.assign(**{f"to_{kind}": frame.norm / frame.norm[kind] for kind in ("image", "text")})

    def _line(self, rows: pd.DataFrame) -> dict[str, Any]:
        line: dict[str, Any] = {"n": rows.item.nunique()}
        for name in MEASURES:
            if name in rows:
                found = rows.dropna(subset=[name]) if name in MISSABLE else rows
                line |= self._mean(name, found)
        for name, floor in GAPS.items():
            if floor in rows:
                line |= self._gap(name, floor, rows.dropna(subset=[floor]) if floor in MISSABLE else rows)
        if "cosine_box" in rows:
            line["n_box"] = rows.item[rows.cosine_box.notna()].nunique()
        return line

    def _mean(self, name: str, rows: pd.DataFrame) -> dict[str, float]:
        """The mean with its interval; chance has none, and what two groups do not have has none."""
        if name.endswith("_chance") or rows.group.nunique() < 2:
            return {name: _mean(rows[name].to_numpy(dtype=float))}
        interval = stats.cluster_mean_interval(rows[name].to_numpy(), rows.group, seed=self.seed)
        return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}

    def _gap(self, name: str, floor: str, rows: pd.DataFrame) -> dict[str, float]:
        """The paired difference of the cosine to its floor; ``p`` belongs to the first."""
        if rows.group.nunique() < 2:
            return {name: _mean(rows.cosine.to_numpy(dtype=float) - rows[floor].to_numpy(dtype=float))}
        gap = stats.paired_difference(rows[floor].to_numpy(), rows.cosine.to_numpy(), rows.group, seed=self.seed)
        p = "p" if name == "difference" else f"p{name.removeprefix('difference')}"
        return {name: gap.estimate, f"{name}_low": gap.low, f"{name}_high": gap.high, p: gap.p}


MISSABLE = {"cosine_box", "boxes_below", "centred"}
"""Measures that some items do not have, for reasons that `Alignment` states; elsewhere a NaN is an error."""


def _mean(values: Float[np.ndarray, " item"]) -> float:
    """The mean, NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan
