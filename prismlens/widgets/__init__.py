"""Notebook widgets: they draw what `exploration` computes, and compute nothing themselves."""

from prismlens.widgets.explore import explore

__all__ = ["explore"]
