"""Geometry of latents: hand-computed sets, invariances, and what the debiased index is for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismlens.alignment.geometry import cross_item_cosine, debiased_cka, gram, participation_ratio, rank
from prismlens.errors import SettingError
from prismlens.stats import jackknife_interval

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_dimensions_of_sets_known_by_hand():
    line = gram(np.outer([0.0, 1, 2, 5], [1.0, 2, 3]))
    assert participation_ratio(line) == pytest.approx(1) and rank(line) == 1
    cross = gram(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    assert participation_ratio(cross) == pytest.approx(2) and rank(cross) == 2
    # Variances 9 and 1: (9 + 1)^2 / (81 + 1), and the first component holds exactly 90 %.
    wide = gram(np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]))
    assert participation_ratio(wide) == pytest.approx(100 / 82) and rank(wide) == 1 and rank(wide, 0.91) == 2
    same = gram(np.ones((5, 3), dtype="float32") * 0.1)
    assert math.isnan(participation_ratio(same)) and math.isnan(rank(same))


def test_cross_item_cosine_is_the_mean_over_pairs_of_other_groups():
    vectors = np.array([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
    half = math.sqrt(0.5)
    assert cross_item_cosine(gram(vectors), list("abcd")) == pytest.approx((0 + half - 1 + half + 0 - half) / 6)
    assert cross_item_cosine(gram(vectors), list("aabb")) == pytest.approx((half - 1 + half + 0) / 4)
    assert math.isnan(cross_item_cosine(gram(vectors), list("aaaa")))
    assert math.isnan(cross_item_cosine(gram(np.vstack([vectors, [0, 0]])), list("abcde")))


def brute_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic over ordered quadruples of different items (Song et al. 2012, eq. 3), term by term."""
    n, total = len(k), 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_cka_is_the_ratio_of_u_statistics():
    a, b = gram(normal(0, 7, 3)), gram(normal(1, 7, 4) + 2)
    a, b = (a, a * 0.5 + b)
    expected = brute_hsic(a, b) / math.sqrt(brute_hsic(a, a) * brute_hsic(b, b))
    assert debiased_cka(a, b) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(debiased_cka(a[:3, :3], b[:3, :3]))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_geometry_knows_no_rotation_scale_or_shift(seed: int):
    vectors, others = normal(seed, 12, 5), normal(seed + 1, 12, 5)
    turn = stats.ortho_group.rvs(5, random_state=seed % 2**31)
    moved = 3 * vectors @ turn + normal(seed + 2, 5)
    assert debiased_cka(gram(vectors), gram(moved)) == pytest.approx(1)
    assert debiased_cka(gram(moved), gram(others)) == pytest.approx(debiased_cka(gram(vectors), gram(others)), abs=1e-9)
    assert participation_ratio(gram(moved)) == pytest.approx(participation_ratio(gram(vectors)))
    assert rank(gram(moved)) == rank(gram(vectors))
    assert 1 <= participation_ratio(gram(vectors)) <= 5


def test_cka_of_unrelated_wide_sets_is_about_0_where_the_plain_one_is_near_1():
    found, plain = [], []
    for seed in range(100):
        a, b = (gram(normal(2 * seed + k, 10, 200)) for k in (0, 1))
        found.append(debiased_cka(a, b))
        centre = np.eye(10) - 0.1
        a, b = centre @ a @ centre, centre @ b @ centre
        plain.append(np.sum(a * b) / math.sqrt(np.sum(a * a) * np.sum(b * b)))
    assert abs(np.mean(found)) < 4 * np.std(found) / 10
    assert np.mean(plain) > 0.9


def test_the_jackknife_of_a_mean_is_the_t_interval():
    values = normal(5, 20)
    found = jackknife_interval(lambda kept: float(values[kept].mean()), range(20))
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert (found.estimate, found.low, found.high) == pytest.approx((values.mean(), low, high))
    groups = np.repeat(["a", "b", "c", "d", "e"], 4)
    whole = jackknife_interval(lambda kept: float(values[kept].mean()), groups)
    means = values.reshape(5, 4).mean(1)
    assert (whole.low, whole.high) == pytest.approx(stats.t.interval(0.95, 4, means.mean(), stats.sem(means)))
    assert math.isnan(jackknife_interval(lambda kept: math.nan, range(3)).low)
    with pytest.raises(SettingError, match="20 items in 1 group"):
        jackknife_interval(lambda kept: 0.0, ["a"] * 20)
