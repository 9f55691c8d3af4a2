"""One line of statistics from the per-item rows of one place; knows no probe and no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

import prismlens.stats as stats
from prismlens.probes.bound import information_bound, label_entropy
from prismlens.probes.significance import permutation_p


def place_line(
    rows: pd.DataFrame, null: Float[np.ndarray, " shuffle"], *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Accuracy and its controls, from rows with ``label, group, correct, control, logprob``.

    Returns:
        ``n, n_classes``; ``accuracy, low, high`` (bootstrap over groups); ``majority`` (rate of the commonest label);
        ``control`` (mean accuracy on the control tasks), ``selectivity, selectivity_low, selectivity_high`` (accuracy
        minus control, paired by item); ``shuffled`` (mean accuracy under shuffled labels), ``p``; ``entropy, bound``
        (nats).
    """
    right, groups = rows.correct.to_numpy(dtype=float), rows.group
    interval = stats.cluster_mean_interval(right, groups, n_resamples=n_resamples, seed=seed)
    entropy = label_entropy(rows.label.value_counts().to_numpy())
    line = {
        "n": len(rows), "n_classes": rows.label.nunique(),
        "accuracy": interval.estimate, "low": interval.low, "high": interval.high,
        "majority": stats.majority_rate(list(rows.label)).rate,
        "control": np.nan, "selectivity": np.nan, "selectivity_low": np.nan, "selectivity_high": np.nan,
        "shuffled": float(null.mean()) if len(null) else np.nan, "p": permutation_p(interval.estimate, null),
        "entropy": entropy, "bound": information_bound(entropy, rows.logprob.to_numpy(dtype=float)),
    }  # fmt: skip
    control = rows.control.to_numpy(dtype=float)
    if not np.isnan(control).any():
        gap = stats.cluster_mean_interval(right - control, groups, n_resamples=n_resamples, seed=seed)
        line |= {
            "control": float(control.mean()), "selectivity": gap.estimate,
            "selectivity_low": gap.low, "selectivity_high": gap.high,
        }  # fmt: skip
    return line
