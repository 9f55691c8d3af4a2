"""Items x conditions x seeds -> one row each; computes no statistics."""

from prismlens.experiment.conditions import run_conditions
from prismlens.experiment.records import outcome
from prismlens.experiment.variants import CLEAN

__all__ = ["CLEAN", "outcome", "run_conditions"]
