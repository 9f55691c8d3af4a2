"""Fits the logistic probe on some items, for many labellings at once, and asks about others; chooses no C."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from prismlens.probes.multinomial import EXACT, fit_multinomial
from prismlens.probes.span import span


@dataclass(frozen=True, eq=False)
class Split:
    """Features of the items to fit on and of those to ask about, in the span of the former (see `Span`).

    Args:
        train, test: which items.
        rows: of the training items.
        asked: of the tested items.
    """

    train: Bool[np.ndarray, " item"]
    test: Bool[np.ndarray, " item"]
    rows: Float[np.ndarray, "trained rank"]
    asked: Float[np.ndarray, "tested rank"]

    @classmethod
    def of(
        cls, x: Float[np.ndarray, "item d"], train: Bool[np.ndarray, " item"], test: Bool[np.ndarray, " item"]
    ) -> Split:
        """Everything that depends on features (centre, spread and span) is measured on the training items."""
        where = span(x[train].astype(np.float64))
        return cls(train, test, where.rows, where.project(x[test].astype(np.float64)))

    def logprobs(
        self,
        codes: Int[np.ndarray, "problem item"],
        strengths: Float[np.ndarray, " problem"],
        n_classes: int,
        tolerance: float = EXACT,
    ) -> Float[np.ndarray, "problem tested class"]:
        """Log-probabilities (nats) of every class at the tested items; -inf for a class that the training items lack.

        Args:
            codes: labels of all items, one row a labelling.
            strengths: C of each labelling.
            n_classes: codes are below it.
            tolerance: see `fit_multinomial`.
        """
        solution = fit_multinomial(self.rows, codes[:, self.train], strengths, n_classes, tolerance)
        return solution.logprobs(self.asked)

    def true_logprobs(
        self, codes: Int[np.ndarray, "problem item"], strengths: Float[np.ndarray, " problem"], n_classes: int,
        tolerance: float = EXACT,
    ) -> Float[np.ndarray, "problem tested"]:  # fmt: skip
        """What each labelling's own labels are given."""
        every = self.logprobs(codes, strengths, n_classes, tolerance)
        return np.take_along_axis(every, codes[:, self.test, None], axis=2)[..., 0]
