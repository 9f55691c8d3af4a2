"""What latents say, resemble, get attended to and react to; describes, and says nothing about use."""

from __future__ import annotations

from prismlens.lens.attention import AttentionMass, attention, attention_mass, enrichment
from prismlens.lens.logit import LogitLens, logit_lens
from prismlens.lens.patches import NearestPatches, nearest_patches
from prismlens.lens.sensitivity import Sensitivity, sensitivity
from prismlens.lens.variance import VarianceShares, variance_shares

__all__ = [
    "AttentionMass",
    "LogitLens",
    "NearestPatches",
    "Sensitivity",
    "VarianceShares",
    "attention",
    "attention_mass",
    "enrichment",
    "logit_lens",
    "nearest_patches",
    "sensitivity",
    "variance_shares",
]
