"""The result of a patching sweep: per-pair rows, and every statistic computed from them; runs no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

import prismlens.stats as stats
from prismlens.errors import ResultsError, SettingError
from prismlens.results import Results

N_RESAMPLES = 2_000
"""Bootstrap samples of a cell's interval; a sweep has hundreds of cells."""
EXACT, APPROXIMATE = "patched", "attributed"
CELL = ("site", "layer", "pos", "head")
"""The columns that name a cell."""


@dataclass(frozen=True)
class AttributionError:
    """How far attribution is from the patch itself, over the cells of a sweep.

    Args:
        rank_correlation: Spearman's, of the cells' mean recovered fractions; NaN where either does not vary.
        max_abs: largest absolute difference of a cell's two means, as a fraction.
        mean_abs: mean absolute difference.
        n_cells: how many cells were compared.
    """

    rank_correlation: float
    max_abs: float
    mean_abs: float
    n_cells: int


@dataclass(frozen=True, eq=False)
class PatchingSweep:
    """A sweep's rows, and the statistics computed from them.

    Args:
        results: one row a cell and pair: ``pair, corrupted_item, group``; ``site, layer, pos, head`` (the cell);
            ``at`` (where the pair was measured, see `paired_runs`); ``clean, corrupted`` (the metric of both sides);
            ``patched`` (under the patch) and ``attributed`` (its first-order estimate), NaN where not asked for. In
            free mode ``patched`` is NaN too where a patched run wrote no answer.
        seed: of the bootstrap.
    """

    results: Results
    seed: int = 0

    @property
    def rows(self) -> pd.DataFrame:
        """The per-pair rows, with ``recovered`` and ``recovered_attributed``.

        The fraction (patched - corrupted) / (clean - corrupted): 1 where the patch makes the run as good as the clean
        one, 0 where it leaves it as the corrupted one. It may lie outside 0..1.
        """
        rows = self.results.frame()
        gap = rows.clean - rows.corrupted
        rows["recovered"] = (rows[EXACT] - rows.corrupted) / gap
        rows["recovered_attributed"] = (rows[APPROXIMATE] - rows.corrupted) / gap
        return rows

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of `tensor`, in order."""
        return tuple(self.results.manifest["axes"])

    @property
    def labels(self) -> dict[str, tuple[str | int, ...]]:
        """Axis -> what its entries are called."""
        return {axis: tuple(labels) for axis, labels in self.results.manifest["axes"].items()}

    @property
    def excluded(self) -> dict[str, list[str]]:
        """Reason -> ids of the clean items of the pairs that were left out; empty where all were measured."""
        return dict(self.results.manifest["excluded"])

    @property
    def n_pairs(self) -> int:
        """How many pairs were measured."""
        return int(self.results.rows.pair.nunique())

    @property
    def n_excluded(self) -> int:
        """How many pairs were left out."""
        return sum(len(ids) for ids in self.excluded.values())

    @property
    def tensor(self) -> Float[Tensor, "*axes"]:
        """Mean recovered fraction of each cell over its pairs, over `axes`; NaN where no pair has the cell.

        Raises:
            SettingError: the sweep was run with ``method="attribution"``.
        """
        return self._means("recovered", "exact")

    @property
    def attribution(self) -> Float[Tensor, "*axes"]:
        """The same from the gradient.

        Raises:
            SettingError: the sweep was run with ``method="exact"``.
        """
        return self._means("recovered_attributed", "attribution")

    def attribution_error(self) -> AttributionError:
        """How far attribution is from the patch itself.

        Raises:
            SettingError: the sweep was not run with ``method="both"``.
        """
        exact, near = self.tensor.flatten(), self.attribution.flatten()
        both = ~(exact.isnan() | near.isnan())
        a, b = exact[both].numpy(), near[both].numpy()
        varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
        rank = float(spearmanr(a, b).statistic) if varies else float("nan")  # type: ignore[attr-defined]
        return AttributionError(rank, float(np.abs(a - b).max()), float(np.abs(a - b).mean()), len(a))

    def frame(self, *, level: float = 0.95, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
        """One line a cell, in the order of `tensor`.

        Columns: those of ``site, layer, pos, head`` that are `axes`; ``n`` (pairs measured), ``n_lost`` (pairs that
        have the cell, but wrote no answer under the patch); ``recovered, low, high`` (mean over pairs, and its
        bootstrap interval over groups; no interval where there is one group); ``attributed`` (by gradient).
        """
        rows = self.rows
        column = "recovered_attributed" if self.results.manifest["method"] == "attribution" else "recovered"
        lines = []
        grouped = cast(Iterable[tuple[tuple, pd.DataFrame]], rows.groupby(list(CELL), sort=False, dropna=False))
        for cell, own in grouped:
            there = own[own[column].notna()]
            line: dict[str, Any] = dict(zip(CELL, cell, strict=True))
            line |= {"n": len(there), "n_lost": len(own) - len(there), "recovered": own.recovered.mean()}
            line |= self._interval(np.asarray(there[column]), np.asarray(there.group), level, n_resamples)
            lines.append(line | {"attributed": own.recovered_attributed.mean()})
        frame = pd.DataFrame(lines)
        for axis, labels in self.labels.items():
            frame[axis] = pd.Categorical(frame[axis], categories=list(labels), ordered=True)
        frame = frame.sort_values(list(self.axes), ignore_index=True)
        kinds = {axis: "int64" if axis in ("layer", "head") else "object" for axis in self.axes}
        frame = frame.astype(kinds).drop(columns=[one for one in CELL if one not in self.axes])
        frame.attrs["excluded"] = {reason: len(ids) for reason, ids in self.excluded.items()}
        return frame

    def save(self, folder: str | Path) -> Path:
        """Write rows and manifest; see `Results.save`."""
        manifest = {**self.results.manifest, "patching": {"seed": self.seed}}
        return Results(self.results.rows, manifest).save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> PatchingSweep:
        """Read back what `save` wrote; every statistic is recomputed from the rows."""
        results = Results.load(folder)
        settings = results.manifest.get("patching")
        if not isinstance(settings, dict):
            raise ResultsError(f"{str(folder)!r} holds other results", needed="a saved patching sweep")
        return cls(results, **settings)

    def _means(self, column: str, method: str) -> Tensor:
        """Means over pairs as a tensor over the axes."""
        asked = self.results.manifest["method"]
        if asked not in (method, "both"):
            raise SettingError(f"a sweep with method={asked!r}", needed=f'"{method}" or "both"')
        means = cast(pd.DataFrame, self.rows.groupby(list(self.axes), as_index=False)[[column]].mean())
        out = torch.full([len(labels) for labels in self.labels.values()], float("nan"), dtype=torch.float64)
        places = [{label: i for i, label in enumerate(labels)} for labels in self.labels.values()]
        for *cell, mean in means.itertuples(index=False):
            out[tuple(place[label] for place, label in zip(places, cell, strict=True))] = float(mean)
        return out

    def _interval(self, values: np.ndarray, groups: np.ndarray, level: float, n_resamples: int) -> dict[str, float]:
        """Ends of the interval; NaN where there are fewer than two groups."""
        if len(set(groups)) < 2:
            return {"low": float("nan"), "high": float("nan")}
        found = stats.cluster_mean_interval(values, groups, level=level, n_resamples=n_resamples, seed=self.seed)
        return {"low": found.low, "high": found.high}
