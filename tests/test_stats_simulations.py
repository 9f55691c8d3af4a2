"""Null and planted-effect simulations: the tests reject at their nominal rate, and have the power they claim.

Every bound is four standard errors of the simulated rate wide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prismlens.stats import (
    cluster_mean_interval,
    covers,
    equivalence,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_difference,
)


def near(rate: float, runs: int) -> object:
    """A rate within four standard errors of the expected one."""
    return pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / runs))


def clustered(rng: np.random.Generator, n_groups: int, between: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values of mean 0 in groups of 2 to 8 items, and the groups; items of a group share a part of their value."""
    groups = np.repeat(np.arange(n_groups), rng.integers(2, 9, n_groups))
    return between * rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups)), groups


def outcomes(rng: np.random.Generator, n: int, gain: float, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Independent items, of which a share goes from wrong to right and another from right to wrong."""
    u = rng.random(n)
    gained, lost, stays_right = u < gain, (u >= gain) & (u < gain + loss), u > 0.6
    return lost | stays_right, gained | stays_right


def test_mcnemar_rejects_at_the_exact_size_of_its_binomial() -> None:
    rng, runs, changed = np.random.default_rng(0), 600, 25
    gained = rng.random((runs, changed)) < 0.5
    rejected = [mcnemar_exact(~row, row).p < 0.05 for row in gained]
    assert np.mean(rejected) == near(
        2 * float(scipy_stats.binom.cdf(7, changed, 0.5)), runs
    )  # 0.043: 8 of 25 gives 0.108


@pytest.mark.parametrize("n_groups", [10, 30])
def test_sign_flip_rejects_at_its_nominal_rate_on_clustered_data(n_groups: int) -> None:
    rng, runs, rejected = np.random.default_rng(1), 800, 0
    for seed in range(runs):
        after, groups = clustered(rng, n_groups)
        rejected += paired_difference(np.zeros(len(after)), after, groups, seed=seed, n_resamples=199).p <= 0.05
    assert rejected / runs == near(0.05, runs)


def test_ignoring_the_groups_rejects_far_too_often() -> None:
    rng, runs, rejected = np.random.default_rng(1), 300, 0
    for seed in range(runs):
        after, _ = clustered(rng, 30)
        alone = range(len(after))
        rejected += paired_difference(np.zeros(len(after)), after, alone, seed=seed, n_resamples=199).p <= 0.05
    assert rejected / runs > 0.15


@pytest.mark.parametrize("n_groups", [8, 30])
def test_bootstrap_interval_covers_at_its_level_only_when_groups_are_resampled(n_groups: int) -> None:
    rng, runs, by_group, alone = np.random.default_rng(2), 400, 0, 0
    for seed in range(runs):
        values, groups = clustered(rng, n_groups)
        by_group += covers(cluster_mean_interval(values, groups, seed=seed, n_resamples=999), 0.0)
        alone += covers(cluster_mean_interval(values, range(len(values)), seed=seed, n_resamples=999), 0.0)
    assert by_group / runs == near(0.95, runs)
    assert alone / runs < 0.85


def test_paired_interval_covers_a_planted_accuracy_difference() -> None:
    rng, runs, covered = np.random.default_rng(3), 400, 0
    for seed in range(runs):
        before, after = outcomes(rng, 150, gain=0.05, loss=0.15)
        covered += covers(paired_difference(before, after, range(150), seed=seed, n_resamples=499), -0.1)
    assert covered / runs == near(0.95, runs)


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.1, 0.1)])
def test_detectable_effect_is_found_with_the_stated_power(gain: float, loss: float) -> None:
    rng, runs, n = np.random.default_rng(4), 600, 400
    pilots = [minimum_detectable_effect(*outcomes(rng, n, gain, loss), range(n)) for _ in range(20)]
    effect = float(np.mean(pilots))
    planted = (gain - effect / 2, loss + effect / 2) if gain else (0.0, effect)
    found = [mcnemar_exact(*outcomes(rng, n, *planted)).p < 0.05 for _ in range(runs)]
    assert np.mean(found) == near(0.8, runs)


def test_equivalence_is_claimed_at_its_nominal_rate_at_the_margin_and_reliably_at_zero() -> None:
    rng, runs = np.random.default_rng(5), 500
    at_margin = at_zero = 0
    for _ in range(runs):
        noise, groups = clustered(rng, 40)
        at_margin += equivalence(np.zeros(len(noise)), noise + 0.8, groups, margin=0.8).equivalent
        at_zero += equivalence(np.zeros(len(noise)), noise, groups, margin=0.8).equivalent
    assert at_margin / runs == near(0.05, runs)
    assert at_zero / runs > 0.9
