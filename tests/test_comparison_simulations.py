"""Tests over few models keep their size under the null, and intervals and power keep their promise, in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prismlens.comparison import correlation, correlation_interval, correlation_power, draw_resamples, resampled_means

STUDIES = 300


def within_binomial(hits: int, rate: float, n: int = STUDIES) -> bool:
    """Whether so many hits are inside the central 99.8 % of Binomial(n, rate)."""
    low, high = scipy_stats.binom.ppf([0.001, 0.999], n, rate)
    return bool(low <= hits <= high)


def test_without_a_correlation_the_exact_test_rejects_at_its_size() -> None:
    """Five models with values so skewed that the t-test of r would not hold its size; 6 of 120 orders is .05."""
    draws = np.random.default_rng(6).standard_t(1.5, (STUDIES, 2, 5))
    hits = sum(correlation(x, y).p <= 0.05 for x, y in draws)
    assert within_binomial(hits, 6 / 120), hits


def test_power_is_the_share_of_studies_that_find_it() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 6))
    y = 0.9 * x + np.sqrt(1 - 0.81) * rng.normal(size=(4000, 6))
    hits = int((scipy_stats.pearsonr(x, y, axis=1).pvalue < 0.05).sum())
    assert within_binomial(hits, correlation_power(0.9, 6), 4000), hits


def test_the_interval_covers_the_correlation_of_the_true_values() -> None:
    """Eight models, 60 scenes of two items, a difficulty that all models share: other scenes would move r by this."""
    rng = np.random.default_rng(2)
    n_models, groups, studies = 8, np.arange(120) // 2, 100
    hits = 0
    for study in range(studies):
        x, truth = rng.normal(size=n_models), rng.normal(size=n_models)
        scene = 0.5 * rng.normal(size=(1, 1, 60)) + 1.0 * rng.normal(size=(n_models, 1, 60))
        values = truth[:, None, None] + np.repeat(scene, 2, axis=2) + rng.normal(size=(n_models, 1, 120))
        draws = resampled_means(values, draw_resamples(groups, n_resamples=400, seed=study))
        got = correlation_interval(x, values.mean(axis=(1, 2)), None, draws)
        hits += got.low <= np.corrcoef(x, truth)[0, 1] <= got.high
    assert within_binomial(hits, 0.95, studies), hits


def test_seeds_widen_the_interval_where_they_differ() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(1, 6, 200)) * 0.1 + rng.normal(size=(1, 6, 1))
    together = resampled_means(values, draw_resamples(range(200), 6, seed=0)).std()
    alone = resampled_means(values.mean(axis=1, keepdims=True), draw_resamples(range(200), 1, seed=0)).std()
    assert together > 10 * alone
    assert together == pytest.approx(values.mean(axis=2).std() / np.sqrt(6), rel=0.1)
