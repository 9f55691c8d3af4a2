"""Bootstrap of values over models: items in groups, the same for every model, and seeds; knows only numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from prismlens.comparison.correlation import method_named, row_correlations
from prismlens.comparison.inputs import model_pairs
from prismlens.errors import SettingError
from prismlens.stats.inputs import clusters, generator, inside


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each group of items and each seed was drawn, in every resample.

    Args:
        codes: the group of each item, as a number.
        groups: counts.
        seeds: counts.
    """

    codes: Int[np.ndarray, " item"]
    groups: Float[np.ndarray, "resample group"]
    seeds: Float[np.ndarray, "resample seed"]


@dataclass(frozen=True)
class CorrelationInterval:
    """Percentile interval of a correlation over models whose values were resampled.

    Args:
        r: of the values as they are.
        low: lower end.
        high: upper end.
        level: confidence level.
        undefined: resamples in which a value was equal for all models; they have no correlation and are left out.
    """

    r: float
    low: float
    high: float
    level: float
    undefined: int


def draw_resamples(
    groups: Iterable[Hashable], n_seeds: int = 1, *, n_resamples: int = 2_000, seed: int = 0
) -> Resamples:
    """Draw groups of items, and seeds, with replacement; every model sees the same draw, so that models stay paired.

    Items and seeds are crossed: a seed stands for one choice of noise, donors, or training order over all items. With
    one seed there is nothing to draw and intervals hold the noise of the items alone. With S seeds the variance between
    them comes out (S - 1) / S too small, as in every bootstrap of few units. The groups are drawn as
    `cluster_mean_interval` draws them under the same seed.

    Args:
        groups: one an item; those that share a scene share a group.
        n_seeds: number of seeds.
        n_resamples: draws.
        seed: of the draws.

    Raises:
        SettingError: no items, one group only, no seeds, or a setting out of range.
    """
    rng = generator(seed, n_resamples)
    labels = list(groups)
    if not labels or n_seeds < 1:
        raise SettingError(f"{len(labels)} items and {n_seeds} seeds", needed="at least one of each")
    n_groups = clusters(np.zeros(len(labels)), labels).n_groups
    codes, _ = pd.factorize(pd.Series(labels, dtype=object), sort=True)
    drawn = _counts(rng.integers(n_groups, size=(n_resamples, n_groups)))
    return Resamples(codes, drawn, _counts(rng.integers(n_seeds, size=(n_resamples, n_seeds))))


def _counts(drawn: Int[np.ndarray, "resample n"]) -> Float[np.ndarray, "resample n"]:
    """How often each of n things stands in each row."""
    rows, n = drawn.shape
    flat = np.bincount((drawn + np.arange(rows)[:, None] * n).ravel(), minlength=rows * n)
    return flat.reshape(rows, n).astype(np.float64)


def resampled_means(
    values: Float[np.ndarray, "model seed item"], draws: Resamples
) -> Float[np.ndarray, "resample model"]:
    """Mean over seeds and items of each model in each resample; NaN where none of its values was drawn.

    Args:
        values: NaN where an item was not measured.
        draws: from `draw_resamples`, of the same items and seeds.

    Raises:
        SettingError: the draws are of other numbers of items or seeds.
    """
    given, drawn = values.shape[1:], (draws.seeds.shape[1], len(draws.codes))
    if given != drawn:
        raise SettingError(f"values of {given} seeds and items, draws of {drawn}", needed="draws of these items")
    membership = np.eye(draws.groups.shape[1])[draws.codes]
    measured = ~np.isnan(values)

    def weighted(table: Float[np.ndarray, "model seed item"]) -> Float[np.ndarray, "resample model"]:
        by_seed = np.einsum("rg,msg->rms", draws.groups, table @ membership, optimize=True)
        return np.einsum("rms,rs->rm", by_seed, draws.seeds)

    sums, counts = weighted(np.where(measured, values, 0.0)), weighted(measured.astype(np.float64))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def correlation_interval(
    x: ArrayLike,
    y: ArrayLike,
    x_draws: Float[np.ndarray, "resample model"] | None = None,
    y_draws: Float[np.ndarray, "resample model"] | None = None,
    *,
    method: str = "pearson",
    level: float = 0.95,
) -> CorrelationInterval:
    """Interval of a correlation when the models' values are uncertain and the models are these.

    It says how far other items (and seeds) would move r. It does not say what other models would show, which is what
    `correlation`'s p and `leave_one_out` are about.

    Args:
        x: one value a model.
        y: the other.
        x_draws: resampled values of x; x itself in every resample when not given.
        y_draws: resampled values of y; both from one draw where both depend on the items.
        method: ``"pearson"`` or ``"spearman"``.
        level: confidence level.

    Raises:
        SettingError: see `correlation`; draws of other models; or no resample has a correlation.
    """
    transformed = method_named(method)
    inside("level", level, 0.0, 1.0)
    first, second = model_pairs(x, y)
    if x_draws is None and y_draws is None:
        raise SettingError("neither `x_draws` nor `y_draws` is given", needed="resampled values of at least one")
    n = len(x_draws if x_draws is not None else y_draws)  # type: ignore[arg-type]
    tables = [
        np.broadcast_to(values, (n, len(values))) if drawn is None else drawn
        for values, drawn in ((first, x_draws), (second, y_draws))
    ]
    shapes = [table.shape for table in tables]
    if shapes != [(n, len(first))] * 2:
        raise SettingError(f"draws of the shapes {shapes}", needed=f"(resamples, {len(first)}), the same for both")
    r = row_correlations(*(transformed(table) for table in tables))
    defined = r[~np.isnan(r)]
    if not len(defined):
        raise SettingError(f"none of {n} resamples has a correlation", cause="a value is equal for all models in each")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    estimate = row_correlations(transformed(first)[None], transformed(second)[None])[0]
    return CorrelationInterval(float(estimate), float(low), float(high), level, n - len(defined))
