"""Activations by hook name, what they add up to, and their files; knows nothing of how they were read."""

from prismlens.cache.readout import BlockWeights, Readout
from prismlens.cache.residual import ActivationCache, open_cache

__all__ = ["ActivationCache", "BlockWeights", "Readout", "open_cache"]
