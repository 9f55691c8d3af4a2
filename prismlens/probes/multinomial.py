"""Fits many L2-penalised multinomial regressions at once, exactly; knows no scaling, no folds and no estimators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax

from prismlens.errors import SettingError

EXACT, ROUGH = 1e-9, 1e-3
"""Newton decrements, in nats over all rows, below which a fit is finished; the step that found it is still taken. Rough
is enough to compare held-out likelihoods of tens of items, or to see which class is likeliest."""
MOST_STEPS, MOST_PRODUCTS = 100, 400
"""Newton steps of a fit, and Hessian products of a step."""
NUMBERS_AT_ONCE = 2**15
"""Weights that are fitted together: few enough to stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights and intercepts; both sum to zero over the classes that a problem has, and are zero at the others.

    Args:
        weights: of each column.
        intercepts: one a class.
        present: whether the class occurs among the problem's labels.
    """

    weights: Float[np.ndarray, "problem column class"]
    intercepts: Float[np.ndarray, "problem class"]
    present: Bool[np.ndarray, "problem class"]

    def logprobs(self, design: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "problem row class"]:
        """Log-probability of every class; -inf where the problem does not have it."""
        scores = design @ self.weights + self.intercepts[:, None]
        return log_softmax(np.where(self.present[:, None], scores, -np.inf), axis=2)


def fit_multinomial(
    design: Float[np.ndarray, "row column"],
    codes: Int[np.ndarray, "problem row"],
    strengths: Float[np.ndarray, " problem"],
    n_classes: int,
    tolerance: float = EXACT,
) -> Solution:
    """The minimum of ``sum of losses + |weights|^2 / (2 C)``, intercepts free, for every problem.

    The same minimum as scikit-learn's `LogisticRegression`, which for two classes penalises the one vector that
    separates them: half of what the symmetric form here would charge, so the penalty is doubled there. Classes that do
    not occur in a problem are left out of it, as scikit-learn would.

    Newton steps by preconditioned conjugate gradients on a convex loss; the columns should be centred and orthogonal
    (see `prismlens.probes.span`), for speed only. So is the order: the weaker the penalty the longer the way, and
    problems that are fitted together wait for the last.

    Args:
        design: features of the rows.
        codes: labels 0, 1, ... of the rows; a problem is one labelling.
        strengths: C of each problem.
        n_classes: codes are below it.
        tolerance: `EXACT` or `ROUGH`.

    Raises:
        SettingError: a fit does not settle within `MOST_STEPS`.
    """
    rows, columns = design.shape
    whole = np.concatenate([design, np.ones((rows, 1))], axis=1)
    size = max(1, NUMBERS_AT_ONCE // ((columns + 1) * n_classes))
    order = np.argsort(strengths, kind="stable")
    parts = [
        _fit(whole, codes[some], strengths[some], n_classes, tolerance)
        for some in np.split(order, range(size, len(order), size))
    ]
    back = np.argsort(order)
    weights, present = (np.concatenate(one, 2)[..., back] for one in zip(*parts, strict=True))
    # A common shift of all classes changes no probability and only costs penalty; the descent leaves a rest of it.
    weights = np.where(present, weights - weights.sum(1, keepdims=True) / present.sum(1, keepdims=True), 0.0)
    weights = weights.transpose(2, 0, 1)
    return Solution(weights[:, :-1], weights[:, -1], present[0].T)


@dataclass(frozen=True, eq=False)
class _Loss:
    """The data of one set of fits; the last column of the basis is all ones.

    Arrays are ``[row or column, class, problem]``: a product with the basis is then one matrix product, and sums run
    along whole vectors where there are many problems.
    """

    basis: np.ndarray
    transposed: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    penalty: np.ndarray
    squares: np.ndarray

    def value(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The loss of each fit, ``[problem]``."""
        masked = scores + self.mask
        top = masked.max(1, keepdims=True)
        fit = (top + np.log(np.exp(masked - top).sum(1, keepdims=True)))[:, 0].sum(0) - _dot(scores, self.target)
        return fit + _dot(self.penalty * weights, weights) / 2

    def chances(self, scores: np.ndarray) -> np.ndarray:
        """Probability of each class."""
        masked = scores + self.mask
        powers = np.exp(masked - masked.max(1, keepdims=True))
        powers /= powers.sum(1, keepdims=True)
        return powers


def _fit(
    whole: np.ndarray, codes: np.ndarray, strengths: np.ndarray, n_classes: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[column, class, problem]``, the intercept last, and the classes present, ``[1, class, problem]``."""
    rows, columns = whole.shape
    target = (codes.T[:, None] == np.arange(n_classes)[:, None]).astype(np.float64)
    counts = target.sum(0)
    present = counts > 0
    penalty = np.zeros((columns, 1, len(codes)))
    penalty[:-1, 0] = (1 + (present.sum(0) == 2)) / strengths
    loss = _Loss(
        whole, np.ascontiguousarray(whole.T), target,
        np.where(present, 0.0, -np.inf), penalty, (whole**2).sum(0)[:, None, None],
    )  # fmt: skip
    weights = np.zeros((columns, n_classes, len(codes)))
    weights[-1] = np.where(present, np.log(np.where(present, counts, 1) / rows), 0.0)
    return _descended(loss, weights, tolerance), present[None]


def _descended(loss: _Loss, weights: np.ndarray, tolerance: float) -> np.ndarray:
    """Damped Newton descent of all fits together; those that are done take steps of no length."""
    scores = _times(loss.basis, weights)
    value = loss.value(scores, weights)
    for _ in range(MOST_STEPS):
        chances = loss.chances(scores)
        gradient = _times(loss.transposed, chances - loss.target) + loss.penalty * weights
        step, moved = _newton_step(loss, chances, gradient)
        decrement = -_dot(gradient, step)
        length = np.ones_like(value)
        while True:
            new_scores, new_weights = scores + length * moved, weights + length * step
            after = loss.value(new_scores, new_weights)
            uphill = after > value - 1e-4 * length * decrement + 1e-12 * np.abs(value)
            if not uphill.any() or length.min() < 1e-6:
                break
            length = np.where(uphill, length / 2, length)
        weights, scores, value = new_weights, new_scores, after
        if decrement.max() < tolerance:
            return weights
    raise SettingError(
        f"a probe did not settle in {MOST_STEPS} Newton steps",
        needed="a penalty strong enough for these features",
        cause="C is very large and the classes are separable, so that the weights grow without end",
        fix="choose a smaller C, or standardise the features",
    )


def _newton_step(loss: _Loss, chances: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step and how it moves the scores; conjugate gradients, more exact as the gradient shrinks."""
    spread = (chances * (1 - chances)).mean(0)
    inverse = 1 / (loss.penalty + loss.squares * spread + 1e-12)
    step, moved, residual = np.zeros_like(gradient), np.zeros_like(chances), -gradient
    direction = residual * inverse
    size = _dot(residual, direction)
    enough = np.maximum(np.minimum(0.1, 0.1 * np.sqrt(size)), 1e-6) * size + 1e-15
    for _ in range(MOST_PRODUCTS):
        active = size > enough
        if not active.any():
            break
        turned = _times(loss.basis, direction)
        bent = turned - np.einsum("rcp,rcp->rp", chances, turned)[:, None]
        bent *= chances
        product = _times(loss.transposed, bent)
        product += loss.penalty * direction
        curvature = _dot(direction, product)
        length = np.where(active, size / np.where(curvature > 0, curvature, np.inf), 0.0)
        step += length * direction
        moved += length * turned
        residual -= length * product
        scaled = residual * inverse
        new = _dot(residual, scaled)
        kept = np.where(active, new / np.where(size > 0, size, 1.0), 0.0)
        size = np.where(active, new, size)
        direction *= kept
        direction += scaled
    return step, moved


def _times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``[a, b] @ [b, class, problem]`` in one matrix product."""
    inner, classes, problems = right.shape
    return (left @ right.reshape(inner, classes * problems)).reshape(-1, classes, problems)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product over rows or columns and classes, ``[problem]``."""
    return np.einsum("acp,acp->p", a, b)
