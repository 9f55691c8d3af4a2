"""The corruption test: does breaking the latents change the answers? Conditions, controls, and paired statistics."""

from prismlens.corruption.conditions import (
    CONTROL,
    ELSEWHERE,
    REMOVES,
    SLOT,
    VECTOR,
    bit_equal,
    default_conditions,
    default_controls,
    part_of,
    removes,
)
from prismlens.corruption.measure import corruption_test
from prismlens.corruption.result import COLUMNS, MARGIN, CorruptionTest

__all__ = [
    "COLUMNS",
    "CONTROL",
    "ELSEWHERE",
    "MARGIN",
    "REMOVES",
    "SLOT",
    "VECTOR",
    "CorruptionTest",
    "bit_equal",
    "corruption_test",
    "default_conditions",
    "default_controls",
    "part_of",
    "removes",
]
