"""Intervals, paired tests and bounds for items that come in groups; knows nothing of models, runs or files.

Items that show the same scene are not independent, so whatever can be clustered here is: the group is the unit that is
resampled, flipped, or counted for degrees of freedom.
"""

from __future__ import annotations

from prismlens.stats.bootstrap import cluster_mean_interval
from prismlens.stats.crossed import CrossedMean, crossed_mean
from prismlens.stats.detectable import minimum_detectable_effect
from prismlens.stats.equivalence import Equivalence, equivalence
from prismlens.stats.jackknife import jackknife_interval
from prismlens.stats.many import holm
from prismlens.stats.mcnemar import McNemar, mcnemar_exact
from prismlens.stats.paired import PairedDifference, paired_difference
from prismlens.stats.rates import Interval, Majority, covers, majority_rate, proportion_interval

__all__ = [
    "CrossedMean",
    "Equivalence",
    "Interval",
    "Majority",
    "McNemar",
    "PairedDifference",
    "cluster_mean_interval",
    "covers",
    "crossed_mean",
    "equivalence",
    "holm",
    "jackknife_interval",
    "majority_rate",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "paired_difference",
    "proportion_interval",
]
