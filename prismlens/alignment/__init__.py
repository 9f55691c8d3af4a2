"""How close latents are to the image features they are taught to resemble, against floors; says nothing about use."""

from prismlens.alignment.measure import alignment
from prismlens.alignment.result import FORCED, FREE, TARGET, Alignment

__all__ = ["FORCED", "FREE", "TARGET", "Alignment", "alignment"]
