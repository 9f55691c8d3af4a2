"""How much a probe shows that a vector knows of a label, in nats; a pure function of held-out probabilities."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def label_entropy(counts: ArrayLike) -> float:
    """Entropy (nats) of labels that occur this often."""
    shares = np.asarray(counts, dtype=np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * np.log(shares)).sum())


def information_bound(entropy: float, logprobs: Float[np.ndarray, " item"]) -> float:
    """The lower bound ``max(0, H(Y) - held-out cross-entropy)`` on the mutual information (Barber & Agakov 2003).

    Args:
        entropy: of the labels, nats. The empirical one, as here, is itself an estimate.
        logprobs: log-probability (nats) of each item's true label, from a probe that was not fitted on it.
    """
    return max(0.0, entropy + float(np.mean(logprobs)))
