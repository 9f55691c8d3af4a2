"""What can be done to a model's values, as data; this package knows nothing of models, hooks or batches."""

from __future__ import annotations

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
from prismlens.interventions.scale import Scale
from prismlens.interventions.swap import Swap
from prismlens.interventions.zero import Zero

__all__ = [
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
    "Scale",
    "Structural",
    "Swap",
    "Zero",
    "match_donors",
]
