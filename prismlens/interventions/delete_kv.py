"""The structural operation that removes what positions leave behind for later ones; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from prismlens.interventions.operation import Structural


@dataclass(frozen=True)
class DeleteKV(Structural):
    """What follows the block cannot read the keys and values of the selected positions, at any layer.

    Question: is the slot needed, whatever vector is in it? The positions themselves run as usual, see each other, and
    the numbering of later positions does not change; a model that reads the slot but not the vector reacts to this
    and not to `Zero` or `Swap`.
    """
