"""What a comparison found: per-item rows of every model, and every table, correlation and picture made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from prismlens.compare import page, text
from prismlens.compare.correlations import Values, correlation_frame
from prismlens.compare.rows import ACCURACY, CHANGE, COSINE_FORCED, COSINE_FREE, GAP_BEST, GAP_PAPER
from prismlens.compare.words import label
from prismlens.comparison import Resamples, draw_resamples, resampled_means
from prismlens.errors import ResultsError, SettingError
from prismlens.page import write_page
from prismlens.results import Results
from prismlens.stats.bootstrap import expanded_tail

LEVEL, N_RESAMPLES = 0.95, 10_000
MEASURES = (ACCURACY, COSINE_FORCED, COSINE_FREE, GAP_PAPER, GAP_BEST)
RELIANCE = "reliance"
"""The measure that is a condition's change with its sign turned: how much accuracy is lost without the latents."""
PAIRS = (
    (COSINE_FORCED, ACCURACY), (COSINE_FREE, ACCURACY), (GAP_PAPER, ACCURACY), (GAP_BEST, ACCURACY),
    (COSINE_FORCED, RELIANCE), (GAP_PAPER, RELIANCE), (GAP_BEST, RELIANCE),
)  # fmt: skip
"""The published questions: does the cosine, or the gap, go with accuracy, or with what breaking the latents costs?"""

PLOTS = ((COSINE_FORCED, ACCURACY), (GAP_PAPER, RELIANCE))
"""The pictures of a page."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several models on the same items.

    Args:
        results: one row a model, seed, measure and item; see `report_rows`. The manifest has each model's verdicts,
            what could not be measured, and models that failed.
        seed: of the bootstrap.
    """

    results: Results
    seed: int = 0

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known beside the rows."""
        return self.results.manifest["comparison"]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the given order."""
        return tuple(self.manifest["models"])

    @property
    def failed(self) -> dict[str, str]:
        """Models that were left out because they could not be measured -> why."""
        return dict(self.manifest["failed"])

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that some model was broken by, in their order."""
        names = self.results.rows.measure.unique()
        return tuple(str(name).removeprefix(CHANGE) for name in names if str(name).startswith(CHANGE))

    def values(self, measure: str) -> Float[np.ndarray, "model seed item"]:
        """The per-item values of a measure; NaN where an item, or the whole model, was not measured.

        Args:
            measure: ``"accuracy"``, ``"cosine_forced"``, ``"cosine_free"``, ``"gap_paper"``, ``"gap_best"``,
                ``"change: <condition>"``, or ``"reliance"``.

        Raises:
            SettingError: there is no such measure.
        """
        if measure == RELIANCE:
            return -self.values(f"{CHANGE}{self.manifest[RELIANCE]}")
        # Reliance is asked for whatever the models: where none has latents it is missing, not unknown.
        names = dict.fromkeys((*MEASURES, *(f"{CHANGE}{name}" for name in (*self.conditions, self.manifest[RELIANCE]))))
        if measure not in names:
            raise SettingError(f"measure {measure!r}", needed=f"one of {', '.join(map(repr, (*names, RELIANCE)))}")
        rows = self.results.rows[self.results.rows.measure == measure]
        seeds, items = self.manifest["seeds"], self.manifest["items"]
        out = np.full((len(self.models), len(seeds), len(items)), np.nan)
        known = {"model": list(self.models), "seed": seeds, "item": items}
        places = [pd.Index(names).get_indexer(list(rows[key])) for key, names in known.items()]
        out[tuple(places)] = rows.value.to_numpy(dtype=float)
        return out

    def measured(self, measure: str) -> Values:
        """A measure's mean for each model, and the same in every resample of groups and seeds."""
        values = self.values(measure)
        counts = (~np.isnan(values)).sum(axis=(1, 2))
        means = np.divide(np.nansum(values, axis=(1, 2)), counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return Values(measure, means, resampled_means(values, self._draws))

    def frame(self) -> pd.DataFrame:
        """One line a model.

        Columns: ``n`` (items); each measure with ``_low`` and ``_high``; ``change: <condition>`` of every condition,
        likewise; ``verdict_vector, verdict_slot`` (one word, or one a seed where they differ). Missing where a model
        has no latents or a part could not be measured, which `table` explains. Intervals resample groups and seeds (see
        `draw_resamples`), with the tails of `bootstrap_ends`; with one seed they are those of the model's own report,
        except that the place of ``gap_best`` is not chosen anew in every resample.
        """
        columns: dict[str, Any] = {"n": [len(self.manifest["items"])] * len(self.models)}
        for measure in (*MEASURES, *(f"{CHANGE}{name}" for name in self.conditions)):
            columns |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), self._spread(measure), strict=True))
        for part in ("vector", "slot"):
            columns[f"verdict_{part}"] = [self._words(name, part) for name in self.models]
        return pd.DataFrame(columns, index=pd.Index(self.models, name="model"))

    def correlations(
        self, pairs: Iterable[tuple[str, str]] = PAIRS, *, second: Collection[str] | None = None
    ) -> pd.DataFrame:
        """Correlations of measures over models, one line a pair and method; see `correlation_frame` for the columns.

        Args:
            pairs: measures, see `values`.
            second: names of the models of one family, for the cluster check; read off the first measure by default.

        Raises:
            SettingError: an unknown measure or model.
        """
        strange = sorted(set(second or ()) - set(self.models))
        if strange:
            raise SettingError(f"second={list(second or ())}", needed=f"models of {list(self.models)}")
        asked = list(pairs)
        found = {name: self.measured(name) for name in dict.fromkeys(name for pair in asked for name in pair)}
        member = None if second is None else np.array([name in second for name in self.models])
        return correlation_frame([(found[x], found[y]) for x, y in asked], self.models, member, level=LEVEL)

    def table(self) -> str:
        """The two published tables and the correlations as text, and whatever was left out or not measured."""
        return text.render(self.frame(), self.correlations(), self.manifest)

    def plot(self, x: str = COSINE_FORCED, y: str = ACCURACY) -> Any:
        """Two measures against each other: a point a model, its name, and an interval on each axis.

        Args:
            x: measure on the horizontal axis; see `values`.
            y: measure on the vertical axis.

        Returns:
            A matplotlib figure, which a notebook shows.

        Raises:
            SettingError: an unknown measure, one that no model has, or matplotlib is not installed.
        """
        axes = [_plots().Axis(label(one, self.manifest[RELIANCE]), *self._spread(one)) for one in (x, y)]
        return _plots().models_figure(self.models, *axes, note=self._note(x, y))

    def to_html(self, path: str | Path) -> Path:
        """Write everything as one page that opens offline, over an older one; returns its full path.

        Raises:
            ResultsError: it cannot be written.
            SettingError: matplotlib is not installed.
        """
        pictures = []
        for x, y in PLOTS:
            if (np.isfinite(self.measured(x).means) & np.isfinite(self.measured(y).means)).any():
                pictures.append((f"{y} against {x}", _plots().svg(self.plot(x, y))))
        whole = page.render(self.frame(), self.correlations(), self.manifest, pictures)
        return write_page(path, whole)

    def save(self, folder: str | Path) -> Path:
        """Write rows and manifest into a new folder; see `Results.save`."""
        about = {**self.results.manifest, "comparison_seed": self.seed}
        return Results(self.results.rows, about).save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read back what `save` wrote; every statistic is recomputed from the rows.

        Raises:
            ResultsError: a file is missing, cut short or changed, or holds something else.
        """
        results = Results.load(folder)
        if "comparison" not in results.manifest:
            raise ResultsError(f"{str(folder)!r} holds other results", needed="a saved comparison")
        return cls(results, results.manifest.pop("comparison_seed"))

    @cached_property
    def _draws(self) -> Resamples:
        groups = self.results.rows.groupby("item").group.first()
        seeds = self.manifest["seeds"]
        return draw_resamples(groups[self.manifest["items"]], len(seeds), n_resamples=N_RESAMPLES, seed=self.seed)

    def _spread(self, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of each model, and the lower and upper ends of its interval, which hold it."""
        found = self.measured(measure)
        tail = expanded_tail(LEVEL, self._draws.groups.shape[1])
        low, high = np.quantile(found.draws, [tail, 1 - tail], axis=0)
        return found.means, np.minimum(low, found.means), np.maximum(high, found.means)

    def _note(self, x: str, y: str) -> str:
        """The correlation of a picture in one line, or why there is none."""
        line = self.correlations([(x, y)]).iloc[0]
        if pd.isna(line.r):
            return str(line.why)
        return f"r = {line.r:+.2f} over {line.n} models, permutation p = {line.p:.3f}"

    def _words(self, name: str, part: str) -> str:
        """The word of a verdict; where seeds disagree, each with the number of seeds that gave it."""
        words = Counter(about["verdict"][part]["word"] for about in self.manifest["models"][name])
        return next(iter(words)) if len(words) == 1 else ", ".join(f"{word} ({n})" for word, n in words.most_common())


def _plots() -> Any:
    """The module that draws; without matplotlib its import is an error that names the extra."""
    from prismlens.plots import models

    return models
