"""The gap between what the answer's source and what a latent shows, with intervals; knows right and wrong only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

import prismlens.stats as stats
from prismlens.decodability.states import FINAL, Place
from prismlens.stats.bootstrap import resampled_means
from prismlens.stats.inputs import clusters

COLUMNS = ("reading", "role", "depth", "site", "a", "b", "gap", "low", "high", "p")
LEVEL = 0.95


def gap_frame(
    source: Float[np.ndarray, " item"],
    latents: Mapping[Place, Float[np.ndarray, " item"]],
    groups: Iterable[Hashable],
    *,
    n_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """One line a reading; see `Decodability.gap`.

    Args:
        source: whether each item was right at the answer's source.
        latents: the same at each latent and depth, steps in order.
        groups: one an item.
        n_resamples, seed: of the bootstrap.
    """
    together = list(groups)
    last = [place for place in latents if place.site == FINAL][-1]
    injected = [place for place in latents if place.site != FINAL]
    lines = []
    for reading, place in (("paper", last), *(("injected", place) for place in injected)):
        gap = stats.paired_difference(latents[place], source, together, level=LEVEL, n_resamples=n_resamples, seed=seed)
        lines.append(_line(reading, place, source, latents[place]) | {"low": gap.low, "high": gap.high, "p": gap.p})
    best = max(injected, key=lambda place: latents[place].mean())
    line = _line("best", best, source, latents[best])
    low, high = _best_ends(source, [latents[place] for place in injected], together, n_resamples, seed)
    lines.append(line | {"low": min(low, line["gap"]), "high": max(high, line["gap"]), "p": np.nan})
    return pd.DataFrame(lines, columns=COLUMNS)


def _line(reading: str, place: Place, source: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    a, b = float(source.mean()), float(own.mean())
    return {
        "reading": reading, "role": place.role, "depth": place.depth, "site": place.site, "a": a, "b": b, "gap": a - b,
    }  # fmt: skip


def _best_ends(
    source: np.ndarray, latents: Sequence[np.ndarray], groups: Sequence[Hashable], n_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentiles of the gap to the highest latent, chosen anew in every resample of groups."""

    def means(values: np.ndarray) -> np.ndarray:
        # The same seed draws the same groups, so that resamples are paired over places.
        return resampled_means(clusters(values, groups), n_resamples, np.random.default_rng(seed))

    highest = np.max(np.stack([means(values) for values in latents]), axis=0)
    low, high = np.quantile(means(source) - highest, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
