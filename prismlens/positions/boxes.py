"""Which image tokens a box covers, by the paper's rule, and which of them a latent stands for; knows no batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prismlens.errors import RoleError
from prismlens.types import Box

MERGE = 2
"""Fine cells (vision patches) that one image token spans along each axis."""


def box_tokens(box: Box, grid: tuple[int, int]) -> list[int]:
    """Row-major indices of the image tokens that a box covers, ascending.

    The paper's rule, along each axis: the box is laid on the fine grid (``MERGE`` cells a token), its start rounded
    down and its end rounded up; both are halved, the start again down and the end up. The end is exclusive.

    Args:
        box: normalised ``(x1, y1, x2, y2)``; what reaches outside 0..1 is clipped.
        grid: rows and columns of image tokens (the merged grid).

    Returns:
        At least one index, each below ``rows * columns``.

    Raises:
        RoleError: the grid has no cell, or the box has a coordinate that is not a finite number.
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise RoleError(
            f"the image grid is {rows} x {columns}",
            needed="at least one row and one column of image tokens",
            cause="the item has no image, or pixels were given for tokens",
            fix="give the merged grid, e.g. (4, 4)",
        )
    if not all(math.isfinite(value) for value in box):
        raise RoleError(f"the box is {box!r}", needed="four finite numbers", fix="give normalised xyxy")
    x1, y1, x2, y2 = box
    return [row * columns + column for row in _covered(y1, y2, rows) for column in _covered(x1, x2, columns)]


def slot_tokens(boxes: Sequence[Box], grid: tuple[int, int], steps: int) -> list[int]:
    """The image token that each of `steps` latents stands for: boxes in turn, each box's tokens evenly spaced.

    A fixed budget rarely equals the number of tokens in the boxes; tokens are left out, or repeated, evenly. With more
    boxes than steps the first boxes have none.

    Args:
        boxes: the item's boxes, in order.
        grid: rows and columns of image tokens (the merged grid).
        steps: latents in the block.

    Raises:
        RoleError: there is no box; see also `box_tokens`.
    """
    if not boxes:
        raise RoleError("an item without boxes", needed="at least one box: latents stand for the tokens inside")
    slots: list[int] = []
    for number, box in enumerate(boxes):
        count = steps * (number + 1) // len(boxes) - steps * number // len(boxes)
        tokens = box_tokens(box, grid)
        slots += [tokens[i * len(tokens) // count] for i in range(count)]
    return slots


def enlarged(box: Box, scale: float) -> Box:
    """The box scaled about its centre, clipped to the image."""
    if scale == 1:
        return box
    x1, y1, x2, y2 = box
    half_x, half_y = (x2 - x1) * scale / 2, (y2 - y1) * scale / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return (max(x - half_x, 0.0), max(y - half_y, 0.0), min(x + half_x, 1.0), min(y + half_y, 1.0))


def _covered(start: float, end: float, tokens: int) -> range:
    """The tokens that ``start..end`` covers along one axis: never empty, never outside ``0..tokens - 1``."""
    fine = tokens * MERGE
    first = min(max(math.floor(start * fine) // MERGE, 0), tokens - 1)
    stop = math.ceil(math.ceil(end * fine) / MERGE)
    return range(first, min(max(stop, first + 1), tokens))
