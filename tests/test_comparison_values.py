"""Statistics over a few models against values worked by hand, their theorems, and the errors for bad input."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prismlens.comparison import (
    binomial_draws,
    cluster_check,
    correlation,
    correlation_interval,
    correlation_power,
    detectable_correlation,
    draw_resamples,
    leave_one_out,
    mcnemar_bounds,
    partial_correlation,
    published_count,
    resampled_means,
    two_groups,
)
from prismlens.errors import SettingError
from prismlens.stats import cluster_mean_interval
from prismlens.stats.bootstrap import expanded_tail

X, Y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]


def test_pearson_and_its_exact_p_by_hand() -> None:
    # Deviations (-1.5, -.5, .5, 1.5) and (-1.5, .5, -.5, 1.5): 4 / 5. Over the 24 orders the products are 5 (1), 4 (3),
    # 3 (1), 2 (4), 1 (2), 0 (2) and the same below 0: 8 of 24 reach 4.
    got = correlation(X, Y)
    assert (got.r, got.p) == (pytest.approx(0.8), 8 / 24)
    assert (got.exact, got.smallest_p, got.n, got.method) == (True, 1 / 24, 4, "pearson")


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("n", [3, 5, 6])
def test_exact_p_is_the_share_of_all_orders(n: int, method: str) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n), np.round(rng.normal(size=n), 0) + 0.1 * np.arange(n)
    rule = {"pearson": scipy_stats.pearsonr, "spearman": scipy_stats.spearmanr}[method]
    got = correlation(x, y, method=method)
    every = [abs(rule(x[list(order)], y).statistic) for order in permutations(range(n))]
    assert got.r == pytest.approx(rule(x, y).statistic)
    assert got.p == pytest.approx(np.mean(np.array(every) >= abs(got.r) - 1e-9))


def test_many_models_are_shuffled_and_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=30)
    y = 0.4 * x + rng.normal(size=30)
    got = correlation(x, y)
    assert not got.exact and got.smallest_p == 1 / 20_001
    assert got.p == pytest.approx(scipy_stats.pearsonr(x, y).pvalue, abs=0.01)
    assert correlation(x, x).p == got.smallest_p


def test_spearman_sees_order_only_and_ties_share_a_rank() -> None:
    assert correlation([1, 2, 3, 4], [1, 8, 27, 64], method="spearman").r == 1
    assert correlation([1, 1, 2, 3], [4, 5, 6, 7], method="spearman").r == pytest.approx(math.sqrt(0.9))


def test_leave_one_out_by_hand() -> None:
    # Without the last model (3, 1, 2) against (1, 2, 3): -1/2; the range crosses 0, and says on whom it hangs.
    got = leave_one_out([1, 2, 3, 10], [3, 1, 2, 10])
    assert got.r[3] == pytest.approx(-0.5)
    assert (got.low, got.high) == (min(got.r), max(got.r))
    assert got.low < 0 < correlation([1, 2, 3, 10], [3, 1, 2, 10]).r


def test_leave_one_out_counts_what_has_no_correlation() -> None:
    got = leave_one_out([0, 0, 0, 1], [1, 2, 3, 4])
    assert got.undefined == 1 and math.isnan(got.r[3])
    assert got.low == pytest.approx(got.r[0]) or got.low == pytest.approx(min(got.r[:3]))


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_partial_correlation_is_that_of_residuals(method: str) -> None:
    x, y, z = np.random.default_rng(0).normal(size=(3, 9))
    if method == "spearman":
        x, y, z = (scipy_stats.rankdata(v) for v in (x, y, z))
    left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert partial_correlation(x, y, z, method=method) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert math.isnan(partial_correlation(x, y, 2 * x + 1, method=method))


def test_two_groups_cut_the_widest_spread_and_never_part_equals() -> None:
    assert two_groups([5, 1, 1.2, 5.1, 0.9]).tolist() == [True, False, False, True, False]
    assert two_groups([1, 1, 1, 2]).tolist() == [False, False, False, True]


def test_two_points_pass_for_five() -> None:
    x, y = [0.1, 0.2, 0.15, 0.9, 1.0], [3.1, 3.3, 3.2, 1.0, 1.05]
    got = cluster_check(x, y)
    assert got.second == (False, False, False, True, True)
    assert got.as_well and abs(got.r_indicator) > abs(got.r) > 0.98
    assert got.within_groups[0] == pytest.approx(1.0) and math.isnan(got.within_groups[1])
    # Pooled over groups: deviations (-.05, .05, 0, -.05, .05) and (-.1, .1, 0, -.025, .025).
    assert got.within == pytest.approx(0.0125 / math.sqrt(0.01 * 0.02125))
    assert got.separation == pytest.approx(1 - 0.01 / np.sum((np.array(x) - np.mean(x)) ** 2))


def test_a_line_is_more_than_two_groups() -> None:
    got = cluster_check(range(8), range(8))
    assert not got.as_well and got.within == pytest.approx(1) and got.r_indicator < 0.9


def test_power_agrees_with_its_edges_and_published_tables() -> None:
    assert correlation_power(0.0, 5) == pytest.approx(0.05, abs=1e-9)
    assert correlation_power(-0.5, 10) == correlation_power(0.5, 10) < correlation_power(0.5, 11)
    # Cohen 1988, table 3.4.1: r = .50 is found with power .80 by 28 cases (29 in later exact work), .30 by 84 to 85.
    assert detectable_correlation(29) == pytest.approx(0.495, abs=0.01)
    assert detectable_correlation(84) == pytest.approx(0.30, abs=0.005)
    assert correlation_power(detectable_correlation(5), 5) == pytest.approx(0.8, abs=1e-3)


def test_mcnemar_bounds_by_hand() -> None:
    # 3 right before and 5 after of 6: gains - losses = 2, losses at most 1 (one wrong item stays to turn right).
    got = mcnemar_bounds(3, 5, 6)
    assert (got.difference, got.fewest, got.most) == (2, 2, 4)
    assert (got.p_low, got.p_high) == (0.5, pytest.approx(2 * (1 + 4) / 16))
    assert mcnemar_bounds(4, 4, 10).p_low == 1 and mcnemar_bounds(0, 10, 10).p_high == 2 / 1024


def test_published_counts() -> None:
    assert [published_count(p, 191) for p in (70.2, 71.7, 57.1, 0.0, 100.0)] == [134, 137, 109, 0, 191]
    with pytest.raises(SettingError, match="counts that print as this: none"):
        published_count(70.3, 191)
    with pytest.raises(SettingError, match="one count of right answers"):
        published_count(50, 1000, digits=0)


def test_resamples_keep_groups_whole_and_models_paired() -> None:
    groups = ["a", "a", "b", "c", "c", "c"]
    draws = draw_resamples(groups, 3, n_resamples=50, seed=1)
    assert draws.codes.tolist() == [0, 0, 1, 2, 2, 2]
    assert (draws.groups.sum(axis=1) == 3).all() and (draws.seeds.sum(axis=1) == 3).all()
    assert len(np.unique(draws.groups, axis=0)) > 3
    same = np.random.default_rng(0).normal(size=(1, 3, 6)).repeat(2, axis=0)
    means = resampled_means(same + np.array([0.0, 1.0])[:, None, None], draws)
    assert np.allclose(means[:, 1] - means[:, 0], 1.0)


def test_resampled_means_by_hand_and_with_items_not_measured() -> None:
    draws = draw_resamples(range(3), 2, n_resamples=40, seed=0)
    values = np.array([[[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]]])
    got = resampled_means(values, draws)[:, 0]
    for i in range(40):
        flat = [
            v
            for s in range(2)
            for j in range(3)
            for v in [values[0, s, j]] * int(draws.seeds[i, s] * draws.groups[i, j])
        ]
        assert (
            got[i] == pytest.approx(np.mean([v for v in flat if v == v]))
            if any(v == v for v in flat)
            else np.isnan(got[i])
        )


def test_one_seed_draws_as_the_interval_of_a_mean_does() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=90), np.arange(90) // 3
    drawn = resampled_means(values[None, None], draw_resamples(groups, n_resamples=10_000, seed=4))[:, 0]
    tail = expanded_tail(0.95, 30)
    got = cluster_mean_interval(values, groups, seed=4)
    assert np.quantile(drawn, [tail, 1 - tail]) == pytest.approx([got.low, got.high])


def test_more_items_give_a_narrower_correlation_and_none_its_own_point() -> None:
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    widths = []
    for n in (50, 5000):
        draws = binomial_draws(x + 0.3, n, seed=0, n_resamples=2000)
        got = correlation_interval(x, x + 0.3, None, draws)
        widths.append(got.high - got.low)
        assert got.r == pytest.approx(1.0) and got.undefined == 0
    assert widths[0] > 5 * widths[1]
    fixed = correlation_interval(x, -x, np.tile(x, (9, 1)))
    assert (fixed.low, fixed.high) == pytest.approx((-1, -1))


def test_resamples_without_a_correlation_are_counted() -> None:
    draws = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    assert correlation_interval([1, 2, 3], [1, 2, 4], draws).undefined == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: correlation([1, 2], [1, 2]), "at least 3 models"),
        (lambda: correlation([1, 2, 3], [1, 2, 3, 4]), "same models|both of the same"),
        (lambda: correlation([1, 2, np.nan], [1, 2, 3]), "nan for model 2"),
        (lambda: correlation([0.3, 0.1 + 0.2, 0.3], [1, 2, 3]), "nothing correlates with a constant"),
        (lambda: correlation(X, Y, method="kendall"), "'pearson' or 'spearman'"),
        (lambda: leave_one_out([1, 2, 3], [1, 2, 4]), "at least 4"),
        (lambda: cluster_check(X, Y, second=[True] * 4), "both values present"),
        (lambda: detectable_correlation(2), "at least 3"),
        (lambda: detectable_correlation(5, power=0.04), "0.05 < power"),
        (lambda: mcnemar_bounds(5, 12, 10), "between 0 and n"),
        (lambda: binomial_draws([70.2], 191, seed=0), "divide percentages by 100"),
        (lambda: correlation_interval(X, Y), "at least one"),
        (lambda: correlation_interval(X, Y, np.ones((5, 3))), r"\(resamples, 4\)"),
        (lambda: draw_resamples(["a", "a"]), "at least 2 groups"),
        (lambda: draw_resamples([]), "at least one of each"),
        (lambda: resampled_means(np.ones((2, 1, 3)), draw_resamples("abcd")), "draws of these items"),
    ],
)
def test_bad_input_is_named(call, words: str, unchecked: None) -> None:
    with pytest.raises(SettingError, match=words):
        call()
