"""Items x conditions -> one row each; computes no statistics."""

from prismlens.experiment.conditions import CLEAN, run_conditions
from prismlens.experiment.records import outcome

__all__ = ["CLEAN", "outcome", "run_conditions"]
