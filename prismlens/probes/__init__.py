"""Linear probes, what they can be trusted with, and erasure of what they find; knows vectors and labels, no models."""

from __future__ import annotations

from prismlens.probes.bound import information_bound, label_entropy
from prismlens.probes.description import Description, description_length
from prismlens.probes.erasure import Eraser, ErasureFitter
from prismlens.probes.evaluation import Cell, evaluate
from prismlens.probes.logistic import LogisticProbe
from prismlens.probes.means import CentroidProbe, MeanDifferenceProbe
from prismlens.probes.out_of_fold import OutOfFold, out_of_fold
from prismlens.probes.protocol import PROTOCOLS, Protocol
from prismlens.probes.readout import Direction, LinearReadout
from prismlens.probes.ridge import RidgeProbe
from prismlens.probes.significance import map_p, permutation_p

__all__ = [
    "PROTOCOLS",
    "Cell",
    "CentroidProbe",
    "Description",
    "Direction",
    "Eraser",
    "ErasureFitter",
    "LinearReadout",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "OutOfFold",
    "Protocol",
    "RidgeProbe",
    "description_length",
    "evaluate",
    "information_bound",
    "label_entropy",
    "map_p",
    "out_of_fold",
    "permutation_p",
]
