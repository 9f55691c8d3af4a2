"""What can be done to a model's values, as data; this package knows nothing of models, hooks or batches."""

from __future__ import annotations

from prismlens.interventions.constant import Constant
from prismlens.interventions.context import Context
from prismlens.interventions.cut import Cut
from prismlens.interventions.delete_kv import DeleteKV
from prismlens.interventions.donors import DonorMap, match_donors
from prismlens.interventions.edit import Edit
from prismlens.interventions.identity import Identity
from prismlens.interventions.mean import Mean
from prismlens.interventions.noise import Noise
from prismlens.interventions.operation import Operation, Structural
from prismlens.interventions.oracle import Oracle
from prismlens.interventions.paper import paper_conditions
from prismlens.interventions.patch import Patch
from prismlens.interventions.project import Project
from prismlens.interventions.repeat import Repeat
from prismlens.interventions.scale import Scale
from prismlens.interventions.shuffle import Shuffle
from prismlens.interventions.skip import Skip
from prismlens.interventions.source import Source
from prismlens.interventions.steer import Steer
from prismlens.interventions.swap import Swap
from prismlens.interventions.transplant import Transplant
from prismlens.interventions.values import Values
from prismlens.interventions.zero import Zero

__all__ = [
    "Constant",
    "Context",
    "Cut",
    "DeleteKV",
    "DonorMap",
    "Edit",
    "Identity",
    "Mean",
    "Noise",
    "Operation",
    "Oracle",
    "Patch",
    "Project",
    "Repeat",
    "Scale",
    "Shuffle",
    "Skip",
    "Source",
    "Steer",
    "Structural",
    "Swap",
    "Transplant",
    "Values",
    "Zero",
    "match_donors",
    "paper_conditions",
]
