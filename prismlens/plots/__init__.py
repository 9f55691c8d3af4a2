"""Pictures of what was measured, one function each, from the object or its saved folder; computes no statistics."""

from prismlens.plots.alignment_floors import alignment_floors
from prismlens.plots.corruption_profile import corruption_profile
from prismlens.plots.decodability_map import decodability_map
from prismlens.plots.gap_profile import gap_profile
from prismlens.plots.latent_geometry import latent_geometry
from prismlens.plots.patching_map import patching_map
from prismlens.plots.style import svg
from prismlens.plots.training_curves import training_curves

__all__ = [
    "alignment_floors",
    "corruption_profile",
    "decodability_map",
    "gap_profile",
    "latent_geometry",
    "patching_map",
    "svg",
    "training_curves",
]
