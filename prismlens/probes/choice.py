"""Chooses C for every training set by cross-validation inside it; never looks at the fold that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from prismlens.probes.held_out import held_out_logprobs, true_logprobs

LOWEST = np.log(1e-9)
"""Floor of a log-probability in the choice of C, so that one class that a training set lacks does not decide alone."""


def chosen_strengths(
    features: Sequence[Float[np.ndarray, "item _"]],
    codes: Int[np.ndarray, "problem item"],
    folds: Int[np.ndarray, " item"],
    strengths: Sequence[float],
    n_classes: int,
) -> Float[np.ndarray, "fold cell problem"]:
    """C for the probe that will be asked about each fold: the one with the highest log-probability on the others.

    The inner folds are the remaining outer ones, so grouping and stratification hold inside as well, and a fit without
    the folds i and j serves both: judged on j it speaks for the training set of i, judged on i for that of j. Of equals
    the smallest C.
    """
    n_folds, cells, problems, grid = int(folds.max()) + 1, len(features), len(codes), len(strengths)
    if grid == 1:
        return np.full((n_folds, cells, problems), float(strengths[0]))
    scores = np.zeros((n_folds, grid, cells, problems))
    every = np.repeat(codes, grid, axis=0)
    asked = np.tile(np.asarray(strengths, dtype=np.float64), (cells, problems))
    for i, j in combinations(range(n_folds), 2):
        test = (folds == i) | (folds == j)
        logprobs = held_out_logprobs(features, ~test, test, every, asked, n_classes)
        own = np.maximum(true_logprobs(logprobs, every[:, test]), LOWEST).reshape(cells, problems, grid, -1)
        for held, judged in ((i, j), (j, i)):
            total = own[..., folds[test] == judged].sum(-1)
            scores[held] += total.transpose(2, 0, 1)
    return np.asarray(strengths, dtype=np.float64)[scores.argmax(1)]
