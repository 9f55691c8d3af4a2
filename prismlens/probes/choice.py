"""Chooses C for every training set by cross-validation inside it; never looks at the fold that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from prismlens.probes.held_out import Split
from prismlens.probes.multinomial import ROUGH

LOWEST = np.log(1e-9)
"""Floor of a log-probability in the choice of C, so that one class that a training set lacks does not decide alone."""


def chosen_strengths(
    x: Float[np.ndarray, "item d"],
    codes: Int[np.ndarray, "problem item"],
    folds: Int[np.ndarray, " item"],
    strengths: Sequence[float],
    n_classes: int,
) -> Float[np.ndarray, "fold problem"]:
    """C for the probe that will be asked about each fold, climbed to while held-out log-probability rises.

    From the smallest C upwards, each training set stops at the last one before the log-probability of its inner folds
    falls or stays. The likelihood has one peak in C as a rule; where it has two, the first is taken, for shuffled
    labels as for true ones. It saves the weakly penalised fits, which are the slow ones, wherever there is nothing to
    be read.

    The inner folds are the remaining outer ones, so grouping and stratification hold inside as well, and a fit without
    the folds i and j serves both: judged on j it speaks for the training set of i, judged on i for that of j.
    """
    n_folds = int(folds.max()) + 1
    chosen = np.full((n_folds, len(codes)), float(strengths[0]))
    if len(strengths) == 1:
        return chosen
    pairs = {pair: np.isin(folds, pair) for pair in combinations(range(n_folds), 2)}
    splits = {pair: Split.of(x, ~test, test) for pair, test in pairs.items()}
    best, rising = np.full(chosen.shape, -np.inf), np.ones(chosen.shape, dtype=bool)
    for strength in strengths:
        scores = np.zeros(chosen.shape)
        for (i, j), split in splits.items():
            asked = np.flatnonzero(rising[i] | rising[j])
            if not len(asked):
                continue
            given = split.true_logprobs(codes[asked], np.full(len(asked), float(strength)), n_classes, ROUGH)
            given = np.maximum(given, LOWEST)
            for held, judged in ((i, j), (j, i)):
                scores[held, asked] += given[:, folds[split.test] == judged].sum(1)
        rising &= scores > best
        best, chosen = np.where(rising, scores, best), np.where(rising, strength, chosen)
    return chosen
