"""Online description length of labels given vectors: how many nats a probe needs that learns as it reads; no folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from prismlens.errors import SettingError
from prismlens.probes.held_out import Split

PORTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Ends of the portions, as shares of the items."""


@dataclass(frozen=True)
class Description:
    """Length of the code (Voita & Titov 2020, arXiv:2003.12298), in nats.

    Args:
        nats: of the online code.
        uniform: of a code that knows the number of classes only.
    """

    nats: float
    uniform: float

    @property
    def compression(self) -> float:
        """How many times shorter than the uniform code; more is more easily read off, about 1 is nothing."""
        return self.uniform / self.nats


def description_length(
    x: Float[np.ndarray, "item d"],
    codes: Int[np.ndarray, " item"],
    groups: Int[np.ndarray, " item"] | None = None,
    *,
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    seed: int = 0,
) -> Description:
    """The online code of one place's labels.

    Groups come in random order, and the items in portions of whole groups that double in size. The first portion is
    sent uniformly; each further one by a probe fitted on all before, mixed with the uniform distribution at the weight
    ``1 / (1 + items so far)``, so that a class not seen yet costs a finite length. Of several C each portion uses the
    one that would have been shortest so far, which the receiver knows too; the first uses the smallest.

    Args:
        x: features.
        codes: labels 0 to K - 1, K at least 2.
        groups: codes of the groups; each item alone by default.
        strengths: values of C, ascending.
        seed: of the order.

    Raises:
        SettingError: fewer than two items or classes.
    """
    if len(codes) < 2 or codes.max() < 1:
        raise SettingError(f"{len(codes)} items", needed="at least 2 items and 2 classes")
    together = np.arange(len(codes)) if groups is None else groups
    n, n_classes, grid = len(codes), int(codes.max()) + 1, np.asarray(strengths, dtype=np.float64)
    rank = np.random.default_rng(seed).permutation(int(together.max()) + 1)[together]
    order = np.argsort(rank, kind="stable")
    ends = [end for end in _portion_ends(together[order]) if end]
    lengths = np.full(len(grid), ends[0] * np.log(n_classes))  # each C's own code, for the choice
    sent = float(lengths[0])
    for start, end in pairwise(ends):
        train, test = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        train[order[:start]] = True
        test[order[start:end]] = True
        every = np.repeat(codes[None], len(grid), axis=0)
        chances = np.exp(Split.of(x, train, test).true_logprobs(every, grid, n_classes))
        unseen = 1 / (1 + start)
        portion = -np.log((1 - unseen) * chances + unseen / n_classes).sum(1)
        sent += float(portion[lengths.argmin()])
        lengths += portion
    return Description(sent, float(n * np.log(n_classes)))


def _portion_ends(groups: Int[np.ndarray, " item"]) -> list[int]:
    """Ends of the portions among items in their order, each at the end of a group; the last is the number of items."""
    closes = np.append(np.flatnonzero(np.diff(groups)) + 1, len(groups))
    wanted = [share * len(groups) for share in PORTIONS]
    return sorted({int(closes[np.searchsorted(closes, end - 1e-9)]) for end in wanted})
