"""Roles name the positions of an unrolled item; this package knows nothing of models, sites or edits."""

from __future__ import annotations

from prismlens.positions.boxes import box_tokens, enlarged, slot_tokens
from prismlens.positions.description import describe
from prismlens.positions.named import (
    NAMES,
    answer,
    between,
    image,
    latent,
    lead,
    options,
    prompt,
    question,
    template,
)
from prismlens.positions.resolution import Positions, resolve
from prismlens.positions.role import Role
from prismlens.positions.text import parse

__all__ = [
    "NAMES",
    "Positions",
    "Role",
    "answer",
    "between",
    "box_tokens",
    "describe",
    "enlarged",
    "image",
    "latent",
    "lead",
    "options",
    "parse",
    "prompt",
    "question",
    "resolve",
    "slot_tokens",
    "template",
]
