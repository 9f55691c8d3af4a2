"""The solver and the span: scikit-learn's own minimum, whatever is batched, rotated or left out."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

import prismlens.probes.multinomial as multinomial
from prismlens.errors import SettingError
from prismlens.probes.multinomial import fit_multinomial
from prismlens.probes.span import span

RNG = np.random.default_rng(0)
N, WIDE, NARROW = 40, 300, 6


def data(d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features on very different scales, far from zero, and labels that one of them knows a little about."""
    rng = np.random.default_rng(seed)
    codes = np.arange(N) % k
    x = rng.normal(size=(N, d)) * np.geomspace(100, 0.01, d) + 3
    x[:, 0] += 100 * codes
    return x, codes


def theirs(x: np.ndarray, codes: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-10, max_iter=100_000, solver="newton-cg").fit(x, codes)


def ours(x: np.ndarray, codes: np.ndarray, strength: float):
    return fit_multinomial(x, codes[None], np.array([strength]), int(codes.max()) + 1)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("d", [WIDE, NARROW])
@pytest.mark.parametrize("strength", [1e-4, 1.0, 30.0])
def test_rotated_the_fit_is_scikit_learns_over_all_features(k: int, d: int, strength: float):
    x, codes = data(d, k)
    where = span(x)
    z = (x - x.mean(0)) / x.std(0)
    model, mine = theirs(z, codes, strength), ours(where.rows, codes, strength)
    fresh, _ = data(d, k, seed=1)
    there = (fresh - x.mean(0)) / x.std(0)
    said = np.exp(mine.logprobs(where.project(fresh)))[0]
    assert np.abs(said - model.predict_proba(there)).max() < 1e-5
    own = where.unrotated(mine.weights[0]).T
    expected = model.coef_ if k > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    assert np.abs(own - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_the_span_keeps_all_distances_and_is_centred_and_orthogonal():
    for d in (WIDE, NARROW):
        x, _ = data(d, 2)
        where, z = span(x), (x - x.mean(0)) / x.std(0)
        assert where.rows @ where.rows.T == pytest.approx(z @ z.T, abs=1e-8)
        assert where.project(x) == pytest.approx(where.rows, abs=1e-8)
        gram = where.rows.T @ where.rows
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-8 * gram.max()
        assert np.abs(where.rows.mean(0)).max() < 1e-9


def test_features_that_do_not_vary_have_no_say_even_where_rounding_makes_them_look_as_if():
    x, codes = data(NARROW, 3)
    still = np.full((N, 2), [0.1, 1e4]) + np.array([0, 1e-4]) * RNG.normal(size=(N, 1))
    both = span(np.concatenate([x, still], axis=1))
    assert both.varying == NARROW and both.rows == pytest.approx(span(x).rows) and (both.scale[-2:] == 1).all()
    nothing = span(still)
    assert nothing.varying == 0 and nothing.rows.shape == (N, 0)
    said = np.exp(ours(nothing.rows, codes, 1.0).logprobs(nothing.project(still)))
    assert said[0, 0] == pytest.approx(np.bincount(codes) / N)


def test_the_gradient_is_zero_at_what_is_returned():
    x, codes = data(NARROW, 3)
    z = span(x).rows
    solution = ours(z, codes, 0.5)

    def loss(flat: np.ndarray) -> float:
        weights, free = flat[:-3].reshape(NARROW, 3), flat[-3:]
        return -log_softmax(z @ weights + free, axis=1)[np.arange(N), codes].sum() + (weights**2).sum() / 2 / 0.5

    flat = np.concatenate([solution.weights[0].ravel(), solution.intercepts[0]])
    assert np.abs(approx_fprime(flat, loss, 1e-7)).max() < 1e-4
    assert np.abs(solution.weights.sum(2)).max() < 1e-9 and abs(solution.intercepts.sum()) < 1e-12


def test_labellings_fitted_together_are_those_fitted_alone_whatever_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multinomial, "NUMBERS_AT_ONCE", N * 3 * 2)  # two labellings at once, of five
    rng = np.random.default_rng(2)
    design = span(data(WIDE, 3)[0]).rows
    codes = np.stack([rng.permutation(np.arange(N) % 3) for _ in range(5)])
    strengths = np.array([1.0, 1e-4, 1e-2, 0.1, 1e-3])
    together = fit_multinomial(design, codes, strengths, 3)
    for problem in range(5):
        alone = ours(design, codes[problem], strengths[problem])
        assert together.weights[problem] == pytest.approx(alone.weights[0], abs=1e-7)
        assert together.intercepts[problem] == pytest.approx(alone.intercepts[0], abs=1e-6)


def test_a_rough_fit_predicts_as_the_exact_one():
    x, codes = data(NARROW, 3)
    z = span(x).rows
    for strength in (1e-3, 0.1, 1.0):
        exact, rough = (
            fit_multinomial(z, codes[None], np.array([strength]), 3, tolerance).logprobs(z)
            for tolerance in (multinomial.EXACT, multinomial.ROUGH)
        )
        assert np.exp(rough) == pytest.approx(np.exp(exact), abs=2e-3)


def test_a_class_that_a_labelling_lacks_is_left_out_as_scikit_learn_does():
    x, _ = data(NARROW, 2)
    z = span(x).rows
    codes = np.stack([np.arange(N) % 2 * 2, np.arange(N) % 3, np.zeros(N, dtype=int)])
    said = np.exp(fit_multinomial(z, codes, np.full(3, 0.1), 3).logprobs(z))
    assert said[0][:, [0, 2]] == pytest.approx(theirs(z, codes[0], 0.1).predict_proba(z), abs=1e-6)
    assert said[1] == pytest.approx(theirs(z, codes[1], 0.1).predict_proba(z), abs=1e-6)
    alone = np.exp(ours(z, codes[0] // 2, 0.1).logprobs(z))[0]
    assert said[0][:, [0, 2]] == pytest.approx(alone, abs=1e-12)
    assert (said[0, :, 1] == 0).all() and (said[2] == [1, 0, 0]).all()


def test_a_fit_that_does_not_settle_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multinomial, "MOST_STEPS", 2)
    with pytest.raises(SettingError, match="did not settle in 2 Newton steps"):
        ours(span(data(NARROW, 3)[0]).rows, np.arange(N) % 3, 10.0)
