"""Several models, the same items: tables with intervals, and correlations across models with what could undo them."""

from prismlens.compare.compare import compare
from prismlens.compare.comparison import Comparison

__all__ = ["Comparison", "compare"]
