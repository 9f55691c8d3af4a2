"""The model users hold, and everything that runs through nnsight; knows nothing of experiments or statistics."""

from prismlens.trace.corrupt import corrupt
from prismlens.trace.load import load
from prismlens.trace.model import PrismModel
from prismlens.trace.run import Run

__all__ = ["PrismModel", "Run", "corrupt", "load"]
