"""The published correlations, intervals and partial correlation again from the published tables, and what they lack.

Every number of the fixture's "pearson" part is recomputed and compared at its printed digits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prismlens.comparison import (
    binomial_draws,
    cluster_check,
    correlation,
    correlation_interval,
    detectable_correlation,
    leave_one_out,
    mcnemar_bounds,
    partial_correlation,
    published_count,
)

PAPER = json.loads((Path(__file__).parent / "data" / "paper_tables.json").read_text())
PRINTED = PAPER["pearson"]
N = PAPER["n_items"]["vstar"]
CORRUPTIONS = ("zero", "noise_0.1", "noise_0.3", "noise_1.0", "swap")
PAIRS = [
    *(("vstar", column, value) for column, value in PRINTED["vs_vstar"].items()),
    *(("zero", column, value) for column, value in PRINTED["vs_zero"].items()),
    *(("noise_0.1", column, value) for column, value in PRINTED["vs_noise_0.1"].items()),
    ("blink", "probe_a", PRINTED["probe_a_vs_blink"]),
    ("mmvp", "probe_a", PRINTED["probe_a_vs_mmvp"]),
]


def column(name: str) -> np.ndarray:
    """One value a variant, in the order of the paper's tables."""
    return np.array([row[name] for row in PAPER["variants"].values()])


def digits(printed: float) -> int:
    """Digits after the point of a printed number; at least the two that every table has."""
    return max(2, len(repr(printed).partition(".")[2]))


@pytest.mark.parametrize(("outcome", "value", "printed"), PAIRS)
def test_every_published_correlation(outcome: str, value: str, printed: float) -> None:
    assert round(correlation(column(value), column(outcome)).r, digits(printed)) == printed


def test_the_published_partial_correlation() -> None:
    got = partial_correlation(column("probe_a"), column("vstar"), column("question_mean"))
    assert round(got, 3) == PRINTED["partial_probe_a_vstar_given_question_mean"]


@pytest.mark.parametrize(("value", "ends"), PRINTED["bootstrap_95ci_vs_vstar"].items())
def test_every_published_interval(value: str, ends: list[float]) -> None:
    """5,000 binomial draws: the end points of 5,000 draws vary by .01 with the seed, and seed 42 gives the printed ones."""
    x, y = column(value), column("vstar")
    got = correlation_interval(x, y, None, binomial_draws(y / 100, N, seed=42))
    assert [round(got.low, 3), round(got.high, 3)] == ends
    many = correlation_interval(x, y, None, binomial_draws(y / 100, N, n_resamples=50_000, seed=0))
    assert [many.low, many.high] == pytest.approx(ends, abs=0.015)


def test_all_of_the_fixture_is_checked() -> None:
    flat = {k for k in PRINTED if k.startswith("probe_a_vs_")}
    rest = {"vs_vstar", "vs_zero", "vs_noise_0.1", "partial_probe_a_vstar_given_question_mean"}
    assert set(PRINTED) == flat | rest | {"bootstrap_95ci_vs_vstar", "bootstrap"}
    assert len(PAIRS) == 9 + 4 + 4 + 2


def test_the_published_gap_is_a_minus_b() -> None:
    difference = column("gap") - (column("probe_a") - column("probe_b"))
    assert np.abs(difference).max() <= 0.1 + 1e-9  # each of three printed numbers is rounded


def test_what_the_headline_correlation_lacked() -> None:
    """r = -.94 over five models has an exact p of .10 (12 of 120 orders, those inside the two clusters, do as well)."""
    cos, vstar = column("cos"), column("vstar")
    assert correlation(cos, vstar).p == 12 / 120
    rank = correlation(cos, vstar, method="spearman")
    assert rank.p > 0.05
    left = leave_one_out(cos, vstar)
    assert -1 < left.low < left.high < -0.9
    check = cluster_check(cos, vstar)
    assert check.second == (False, False, False, True, True)
    assert round(check.r_indicator, 3) == -0.995 and check.as_well
    assert round(check.within_groups[0], 2) == 0.73
    assert round(check.within, 2) > 0
    assert round(detectable_correlation(5), 2) == 0.94


def test_no_published_corruption_can_be_told_from_none_by_its_counts_alone() -> None:
    """Every change is at most 8 items; only changes of 6 or more could reach .05, and only if no other item moved."""
    reach = {}
    for name, row in PAPER["variants"].items():
        clean = published_count(row["clean"], N)
        for condition in CORRUPTIONS:
            after = clean + round(row[condition] * N / 100)
            assert abs(100 * (after - clean) / N - row[condition]) <= 0.1, (name, condition)
            reach[name, condition] = mcnemar_bounds(clean, after, N)
    assert max(abs(one.difference) for one in reach.values()) == 8
    possible = {key for key, one in reach.items() if one.p_low < 0.05}
    assert possible == {key for key, one in reach.items() if abs(one.difference) >= 6}
    assert not any(one.p_high < 0.05 for one in reach.values())
