"""Where in the model, and at which positions, a label can be read off by a linear probe; says nothing about use."""

from __future__ import annotations

from prismlens.decodability.erasure import ErasureTest, erasure_test
from prismlens.decodability.map import Decodability, decodability
from prismlens.decodability.states import Place, States, read_states

__all__ = ["Decodability", "ErasureTest", "Place", "States", "decodability", "erasure_test", "read_states"]
