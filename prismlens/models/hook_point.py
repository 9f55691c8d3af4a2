"""A named identity: a place inside the model that has no module of its own; knows nothing of who reads it."""

from __future__ import annotations

from torch import Tensor, nn


class HookPoint(nn.Module):
    """The identity, with a name: a place where an activation can be read and replaced. It has no parameters."""

    def forward(self, value: Tensor) -> Tensor:
        """Return `value` itself."""
        return value
