"""Fits many L2-penalised multinomial regressions at once, exactly; knows no scaling, no folds and no estimators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax

from prismlens.errors import SettingError

TOLERANCE = 1e-9
"""Newton decrement, in nats over all rows, below which a fit is finished; the step that found it is still taken."""
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

    weights: Float[np.ndarray, "cell column problem class"]
    intercepts: Float[np.ndarray, "cell problem class"]
    present: Bool[np.ndarray, "problem class"]

    def logprobs(self, design: Float[np.ndarray, "cell row column"]) -> Float[np.ndarray, "cell row problem class"]:
        """Log-probability of every class; -inf where the problem does not have it."""
        scores = _times(design, self.weights) + self.intercepts[:, None]
        return log_softmax(np.where(self.present, scores, -np.inf), axis=3)


def fit_multinomial(
    design: Float[np.ndarray, "cell row column"],
    codes: Int[np.ndarray, "problem row"],
    strengths: Float[np.ndarray, "cell problem"],
    n_classes: int,
) -> Solution:
    """The minimum of ``sum of losses + |weights|^2 / (2 C)``, intercepts free, for every cell and problem.

    The same minimum as scikit-learn's `LogisticRegression`, which for two classes penalises the one vector that
    separates them: half of what the symmetric form here would charge, so the penalty is doubled there. Classes that do
    not occur in a problem are left out of it, as scikit-learn would.

    Newton steps by preconditioned conjugate gradients on a convex loss; the columns should be centred and orthogonal
    (see `prismlens.probes.span`), for speed only.

    Args:
        design: features of the same rows in several cells (places of a network).
        codes: labels 0, 1, ... of the rows; a problem is one labelling.
        strengths: C of each problem in each cell.
        n_classes: codes are below it.

    Raises:
        SettingError: a fit does not settle within `MOST_STEPS`.
    """
    cells, rows, columns = design.shape
    whole = np.concatenate([design, np.ones((cells, rows, 1))], axis=2)
    size = max(1, NUMBERS_AT_ONCE // (cells * (columns + 1) * n_classes))
    parts = [
        _fit(whole, codes[start : start + size], strengths[:, start : start + size], n_classes)
        for start in range(0, len(codes), size)
    ]
    weights, present = np.concatenate([part[0] for part in parts], 3), np.concatenate([part[1] for part in parts], 1)
    # A common shift of all classes changes no probability and only costs penalty; the descent leaves a rest of it.
    weights = np.where(present, weights - weights.sum(2, keepdims=True) / present.sum(0), 0.0)
    return Solution(weights[:, :-1].swapaxes(2, 3), weights[:, -1].swapaxes(1, 2), present.T)


@dataclass(frozen=True, eq=False)
class _Loss:
    """The data of one set of fits; the last column of the basis is all ones.

    Arrays are ``[cell, row or column, class, problem]``: a product with the basis is then one matrix product a cell,
    and sums run along whole vectors where there are many problems.
    """

    basis: np.ndarray
    transposed: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    penalty: np.ndarray
    squares: np.ndarray

    def value(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The loss of each fit, ``[cell, problem]``."""
        masked = scores + self.mask
        top = masked.max(2, keepdims=True)
        fit = (top + np.log(np.exp(masked - top).sum(2, keepdims=True)))[:, :, 0] - (scores * self.target).sum(2)
        return fit.sum(1) + _dot(self.penalty * weights, weights) / 2

    def chances(self, scores: np.ndarray) -> np.ndarray:
        """Probability of each class."""
        masked = scores + self.mask
        powers = np.exp(masked - masked.max(2, keepdims=True))
        powers /= powers.sum(2, keepdims=True)
        return powers


def _fit(whole: np.ndarray, codes: np.ndarray, strengths: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[cell, column, class, problem]``, the intercept last, and the classes present, ``[class, problem]``."""
    cells, rows, columns = whole.shape
    target = (codes.T[:, None] == np.arange(n_classes)[:, None]).astype(np.float64)
    counts = target.sum(0)
    present = counts > 0
    penalty = np.zeros((cells, columns, 1, len(codes)))
    penalty[:, :-1, 0] = ((1 + (present.sum(0) == 2)) / strengths)[:, None]
    loss = _Loss(
        whole, np.ascontiguousarray(whole.transpose(0, 2, 1)), target,
        np.where(present, 0.0, -np.inf), penalty, (whole**2).sum(1)[:, :, None, None],
    )  # fmt: skip
    weights = np.zeros((cells, columns, n_classes, len(codes)))
    weights[:, -1] = np.where(present, np.log(np.where(present, counts, 1) / rows), 0.0)
    return _descended(loss, weights), present


def _descended(loss: _Loss, weights: np.ndarray) -> np.ndarray:
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
            new_scores, new_weights = scores + _wide(length) * moved, weights + _wide(length) * step
            after = loss.value(new_scores, new_weights)
            uphill = after > value - 1e-4 * length * decrement + 1e-12 * np.abs(value)
            if not uphill.any() or length.min() < 1e-6:
                break
            length = np.where(uphill, length / 2, length)
        weights, scores, value = new_weights, new_scores, after
        if decrement.max() < TOLERANCE:
            return weights
    raise SettingError(
        f"a probe did not settle in {MOST_STEPS} Newton steps",
        needed="a penalty strong enough for these features",
        cause="C is very large and the classes are separable, so that the weights grow without end",
        fix="choose a smaller C, or standardise the features",
    )


def _newton_step(loss: _Loss, chances: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step and how it moves the scores; conjugate gradients, more exact as the gradient shrinks."""
    spread = (chances * (1 - chances)).mean(1)[:, None]
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
        bent = chances * turned
        bent -= chances * bent.sum(2, keepdims=True)
        product = _times(loss.transposed, bent)
        product += loss.penalty * direction
        curvature = _dot(direction, product)
        length = _wide(np.where(active, size / np.where(curvature > 0, curvature, np.inf), 0.0))
        step += length * direction
        moved += length * turned
        residual -= length * product
        scaled = residual * inverse
        new = _dot(residual, scaled)
        kept = _wide(np.where(active, new / np.where(size > 0, size, 1.0), 0.0))
        size = np.where(active, new, size)
        direction *= kept
        direction += scaled
    return step, moved


def _times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``[cell, a, b] @ [cell, b, class, problem]`` in one matrix product a cell."""
    cells, inner, classes, problems = right.shape
    return (left @ right.reshape(cells, inner, classes * problems)).reshape(cells, -1, classes, problems)


def _wide(values: np.ndarray) -> np.ndarray:
    """``[cell, problem]`` as ``[cell, 1, 1, problem]``."""
    return values[:, None, None]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product over columns and classes, ``[cell, problem]``."""
    return (a * b).reshape(len(a), -1, a.shape[-1]).sum(1)
