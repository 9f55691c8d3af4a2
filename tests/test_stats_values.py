"""Statistics against values worked by hand, their exact edges, and the errors for bad input."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from prismlens.errors import SettingError
from prismlens.stats import (
    Interval,
    cluster_mean_interval,
    covers,
    equivalence,
    holm,
    majority_rate,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_difference,
    proportion_interval,
)
from prismlens.stats.detectable import fewest_changes

ZEROS, ONES = [0] * 4, [1] * 4


def test_wilson_by_hand_and_at_the_ends() -> None:
    z = scipy_stats.norm.ppf(0.975)
    centre, half = (0.2 + z**2 / 100) / (1 + z**2 / 50), z / (1 + z**2 / 50) * math.sqrt(0.16 / 50 + z**2 / 10_000)
    got = proportion_interval(10, 50)
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half))
    assert (got.estimate, got.level, got.n, got.n_groups) == (0.2, 0.95, 50, 50)
    none, every = proportion_interval(0, 10), proportion_interval(10, 10)
    assert none.low == 0 < none.high
    assert every.low < 1 == every.high
    assert covers(none, 0.0)
    assert covers(every, 1.0)
    assert proportion_interval(10, 50, level=0.5).low > got.low


def test_covers_includes_the_ends() -> None:
    interval = Interval(0.2, 0.1, 0.3, 0.95, 10, 10)
    assert [covers(interval, value) for value in (0.0999, 0.1, 0.2, 0.3, 0.3001)] == [False, True, True, True, False]


def test_mcnemar_by_hand() -> None:
    before = np.array([1, 0, 0, 0, 0, 0, 1, 0], dtype=bool)
    after = np.array([0, 1, 1, 1, 1, 1, 1, 0], dtype=bool)
    got = mcnemar_exact(before, after)
    assert (got.gained, got.lost, got.n) == (5, 1, 8)
    assert got.p == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_exact(after, before).gained == 1
    assert mcnemar_exact(before, before).p == 1.0


def test_paired_difference_by_hand_with_few_groups() -> None:
    # Sums by group: 2, 1, 1, 0. Of the 8 sign patterns of the non-zero ones, two reach |4|.
    got = paired_difference([0, 0, 0, 0, 1], [1, 1, 1, 1, 1], ["a", "a", "b", "c", "d"], seed=0)
    assert got.estimate == pytest.approx(0.8)
    assert got.p == 2 / 8
    assert (got.n, got.n_groups) == (5, 4)
    assert got.low <= got.estimate <= got.high <= 1


def test_exact_and_random_sign_flips_agree() -> None:
    rng = np.random.default_rng(3)
    after = rng.normal(0.3, 1, 12)
    exact = paired_difference(np.zeros(12), after, range(12), seed=0).p
    totals = [sum(after * [1 if i >> j & 1 else -1 for j in range(12)]) for i in range(4096)]
    assert exact == np.mean(np.abs(totals) >= abs(after.sum()) - 1e-9)
    # A thirteenth group with a negligible difference leaves the exact range but hardly moves p.
    drawn = paired_difference(np.zeros(13), np.append(after, 1e-6), range(13), seed=0, n_resamples=20_000).p
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


def test_random_sign_flips_never_give_zero() -> None:
    assert paired_difference(np.zeros(40), np.ones(40), range(40), seed=0, n_resamples=999).p == 1 / 1000


@pytest.mark.parametrize("values", [np.zeros(30), np.linspace(-3, 3, 30), np.arange(30) % 2 == 0])
def test_no_change_is_exactly_nothing(values: np.ndarray) -> None:
    groups = np.arange(30) // 3
    got = paired_difference(values, values, groups, seed=1)
    assert (got.estimate, got.low, got.high, got.p) == (0.0, 0.0, 0.0, 1.0)
    same = equivalence(values, values, groups, margin=0.25)  # ten groups, none of which changed
    assert same.p == pytest.approx(0.75**10) and same.equivalent == (same.p < 0.05)
    assert same.high == pytest.approx(1 - 0.05**0.1) and same.low == -same.high


def test_changes_that_cancel_within_groups_have_p_one() -> None:
    after = np.tile([0.1 + 0.2, -0.3], 10)  # 0.1 + 0.2 - 0.3 is not 0 in floating point
    assert paired_difference(np.zeros(20), after, np.arange(20) // 2, seed=0).p == 1.0


def test_groups_that_cancel_do_not_count_against_the_exact_range() -> None:
    moved, cancelled = np.ones(12), np.tile([0.1 + 0.2, -0.3], 5)
    groups = [*range(12), *(np.arange(10) // 2 + 12)]
    assert paired_difference(np.zeros(22), np.concatenate([moved, cancelled]), groups, seed=0).p == 2 / 4096


def test_neither_item_order_nor_group_names_matter_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    before, after, groups = rng.integers(0, 2, 60), rng.integers(0, 2, 60), np.arange(60) // 3
    order = rng.permutation(60)
    first = paired_difference(before, after, groups, seed=5)
    assert paired_difference(before[order], after[order], groups[order], seed=5) == first
    assert paired_difference(before, after, [f"scene-{g:03d}" for g in groups], seed=5) == first
    assert paired_difference(before, after, groups, seed=6) != first


def test_swapping_the_conditions_mirrors_the_result() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    there, back = (paired_difference(*pair, range(60), seed=5) for pair in ((before, after), (after, before)))
    assert (there.estimate, there.low, there.high) == pytest.approx((-back.estimate, -back.high, -back.low))
    assert there.p == back.p


def test_interval_of_large_samples_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2, 1, 1000)
    got = cluster_mean_interval(values, range(1000), seed=0, n_resamples=20_000)
    half = 1.96 * values.std() / math.sqrt(1000)
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    wider = cluster_mean_interval(values, range(1000), seed=0, level=0.99)
    assert wider.low < got.low < got.high < wider.high


def test_ten_thousand_resamples_of_a_thousand_items_are_fast() -> None:
    rng = np.random.default_rng(0)
    start = time.process_time()
    paired_difference(rng.random(1000), rng.random(1000), range(1000), seed=0)
    assert time.process_time() - start < 5


def test_equivalence_by_hand() -> None:
    # Group sums 1, 0, 0, -1 over 8 items: mean 0, standard error sqrt(4 / 3 * 2) / 8, 3 degrees of freedom.
    after = [1, 0, 0, 0, 0, 0, -1, 0]
    got = equivalence(np.zeros(8), after, np.arange(8) // 2, margin=0.5)
    error = math.sqrt(8 / 3) / 8
    assert got.p == pytest.approx(scipy_stats.t.sf(0.5 / error, 3))
    assert got.high == pytest.approx(scipy_stats.t.ppf(0.95, 3) * error)
    assert got.equivalent == (got.p < 0.05)


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_equivalent_exactly_where_the_ninety_percent_interval_is_inside(margin: float) -> None:
    rng = np.random.default_rng(8)
    got = equivalence(rng.random(100) < 0.5, rng.random(100) < 0.5, np.arange(100) // 2, margin=margin)
    assert got.equivalent == (-margin < got.low and got.high < margin)


def test_a_constant_shift_is_equivalent_only_inside_the_margin() -> None:
    assert equivalence(ZEROS, ONES, range(4), margin=1.5).p == 0
    assert equivalence(ZEROS, ONES, range(4), margin=1.0).p == 1
    assert not equivalence(ONES, ZEROS, range(4), margin=0.5).equivalent


def test_few_items_without_any_change_are_no_proof_of_equivalence() -> None:
    for n, proven in ((2, False), (58, False), (59, True)):  # (1 - .05) ** 59 is the first power below .05
        assert equivalence(np.ones(n), np.ones(n), range(n), margin=0.05).equivalent == proven


def test_equivalence_with_one_item_a_group_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=20), rng.normal(size=20)
    _, lower = scipy_stats.ttest_1samp(after - before, -0.8, alternative="greater")
    _, upper = scipy_stats.ttest_1samp(after - before, 0.8, alternative="less")
    assert equivalence(before, after, range(20), margin=0.8).p == pytest.approx(np.max([lower, upper]))


def test_fewest_changes_is_where_the_exact_test_first_rejects() -> None:
    for alpha in (0.05, 0.01, 0.0625, 0.001):
        k = fewest_changes(alpha)
        assert mcnemar_exact([0] * k, [1] * k).p < alpha <= mcnemar_exact([0] * (k - 1), [1] * (k - 1)).p


def test_detectable_effect_without_any_change() -> None:
    same = np.ones(200)
    got = minimum_detectable_effect(same, same, range(200))
    assert scipy_stats.binom.sf(5, 200, got) == pytest.approx(0.8)  # six or more changes with the stated power
    assert got > 6 / 200
    scenes = minimum_detectable_effect(same, same, np.arange(200) // 10)
    assert scipy_stats.binom.sf(5, 20, 1 - (1 - scenes) ** 10) == pytest.approx(0.8)
    assert scenes > got
    assert minimum_detectable_effect(same[:5], same[:5], range(5)) == math.inf


def test_detectable_effect_from_the_spread_by_hand() -> None:
    after = np.tile([1, 0, 0, 0], 100)
    before = np.tile([0, 0, 1, 0], 100)  # mean 0; the mean square of the differences is 1/2
    error = math.sqrt(0.5 / 399)
    expected = (scipy_stats.t.ppf(0.975, 399) + scipy_stats.t.ppf(0.8, 399)) * error
    assert minimum_detectable_effect(before, after, range(400)) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_majority() -> None:
    rate, label = majority_rate(["b", "a", "b", "c"])
    assert (rate, label) == (0.5, "b")
    assert majority_rate([2, 1, 1, 2]).label == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([0, 1], [0], [1, 2], seed=0), "`before` has 2, `after` has 1"),
        (lambda: paired_difference([0, 1], [0, 1], [1], seed=0), "`values` has 2, `groups` has 1"),
        (lambda: paired_difference([], [], [], seed=0), "`before` is empty"),
        (lambda: paired_difference([0, math.nan], [0, 1], [1, 2], seed=0), "`before` is nan at item 1"),
        (lambda: paired_difference([0, 1], np.array([0, None]), [1, 2], seed=0), "`after` is nan at item 1"),
        (lambda: paired_difference([0, 1], ["x", 1], [1, 2], seed=0), "`after` holds something that is not a number"),
        (lambda: paired_difference([[0, 1]], [[0, 1]], [1], seed=0), r"`before` has the shape \(1, 2\)"),
        (lambda: paired_difference([0, 1], [0, 1], [1, 2], seed=0, level=95.0), r"`level` is 95.0[\s\S]*95 % is 0.95"),
        (lambda: paired_difference([0, 1], [0, 1], [1, 2], seed=-1), "`seed` is -1"),
        (lambda: paired_difference([0, 1], [0, 1], [1, 2], seed=0, n_resamples=0), "`n_resamples` is 0"),
        (lambda: paired_difference([0, 1], [0, 1], ["", ""], seed=0), "all 2 items are in the group ''"),
        (lambda: paired_difference([0, 1], [0, 1], ["a", None], seed=0), "item 1 has no group"),
        (lambda: cluster_mean_interval([0, 1], [1, 2], seed=0, level=0.0), "0 < level < 1"),
        (lambda: equivalence(ZEROS, ONES, range(4), margin=0.0), r"`margin` is 0.0[\s\S]*0 < margin$"),
        (lambda: equivalence(ZEROS, ONES, range(4), margin=math.nan), "`margin` is nan"),
        (lambda: equivalence(ZEROS, ONES, range(4), margin=1.0, alpha=0.5), "`alpha` is 0.5"),
        (lambda: mcnemar_exact([0.5], [1]), "`before` holds 0.5"),
        (lambda: mcnemar_exact([0, 1], [1]), "the lengths differ"),
        (lambda: minimum_detectable_effect([-2.0, 0], [0, 1], [1, 2]), "`before` reaches from -2 to 0"),
        (lambda: minimum_detectable_effect(ZEROS, ONES, range(4), power=1.0), "`power` is 1.0"),
        (lambda: proportion_interval(3, 2), "3 successes among 2 items"),
        (lambda: proportion_interval(0, 0), "0 successes among 0 items"),
        (lambda: proportion_interval(1, 2, level=1.0), "`level` is 1.0"),
        (lambda: holm([0.5, 1.5]), "`pvalues` reach from 0.5 to 1.5"),
        (lambda: holm([]), "`pvalues` is empty"),
        (lambda: majority_rate([]), "`labels` is empty"),
        (lambda: majority_rate(["a", None]), "`labels` holds None"),
        (lambda: majority_rate(["a", math.nan]), "`labels` holds nan"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
