"""Fits the logistic probe on some items in many cells and labellings at once, and asks about others; chooses no C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from prismlens.probes.multinomial import fit_multinomial
from prismlens.probes.span import span


def held_out_logprobs(
    features: Sequence[Float[np.ndarray, "item _"]],
    train: Bool[np.ndarray, " item"],
    test: Bool[np.ndarray, " item"],
    codes: Int[np.ndarray, "problem item"],
    strengths: Float[np.ndarray, "cell problem"],
    n_classes: int,
) -> Float[np.ndarray, "cell problem tested class"]:
    """Log-probabilities (nats) of every class at the tested items; -inf for a class that the training items lack.

    Everything that depends on features is measured on the training items: centre, spread and span. The fit is done in
    the span of the training rows (see `Span`), once for all labellings of a cell.

    Args:
        features: of each cell; all have the same items, and may differ in width.
        train: the items to fit on.
        test: the items to ask about.
        codes: labels of all items, one row a labelling.
        strengths: C of each cell and labelling.
        n_classes: codes are below it.
    """
    spans = [span(x[train].astype(np.float64)) for x in features]
    rank = max(one.rows.shape[1] for one in spans)
    design, asked = np.zeros((len(spans), int(train.sum()), rank)), np.zeros((len(spans), int(test.sum()), rank))
    for cell, (one, x) in enumerate(zip(spans, features, strict=True)):
        own = one.rows.shape[1]  # a column of zeros gets no weight
        design[cell, :, :own], asked[cell, :, :own] = one.rows, one.project(x[test].astype(np.float64))
    solution = fit_multinomial(design, codes[:, train], strengths, n_classes)
    return solution.logprobs(asked).transpose(0, 2, 1, 3)


def true_logprobs(
    logprobs: Float[np.ndarray, "cell problem item class"], codes: Int[np.ndarray, "problem item"]
) -> Float[np.ndarray, "cell problem item"]:
    """What each labelling's own labels were given."""
    return np.take_along_axis(logprobs, codes[None, :, :, None], axis=3)[..., 0]
