"""Statistics across a few models: correlations, how much they are worth, and published accuracies; knows no model.

The unit is the model. With five of them a correlation of .9 is easily had, so each number here comes with what could
undo it: the exact permutation test, each model left out in turn, a split of the models into two groups, the noise of
the items, and the correlation that so few models could have shown at all.
"""

from __future__ import annotations

from prismlens.comparison.clusters import ClusterCheck, cluster_check, two_groups
from prismlens.comparison.correlation import (
    METHODS,
    Correlation,
    LeaveOneOut,
    correlation,
    leave_one_out,
    partial_correlation,
)
from prismlens.comparison.power import correlation_power, detectable_correlation
from prismlens.comparison.published import McNemarBounds, binomial_draws, mcnemar_bounds, published_count
from prismlens.comparison.resampling import (
    CorrelationInterval,
    Resamples,
    correlation_interval,
    draw_resamples,
    resampled_means,
)

__all__ = [
    "METHODS",
    "ClusterCheck",
    "Correlation",
    "CorrelationInterval",
    "LeaveOneOut",
    "McNemarBounds",
    "Resamples",
    "binomial_draws",
    "cluster_check",
    "correlation",
    "correlation_interval",
    "correlation_power",
    "detectable_correlation",
    "draw_resamples",
    "leave_one_out",
    "mcnemar_bounds",
    "partial_correlation",
    "published_count",
    "resampled_means",
    "two_groups",
]
