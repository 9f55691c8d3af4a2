"""Writes names beside points so that none covers another name or a point; knows nothing of what they name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

INK, LEADER = "#333333", "#999999"
REACH = (5, 12, 22, 34, 48, 64, 82)
"""Distances of a name from its point, in points, tried in this order."""
DIRECTIONS = tuple(np.deg2rad([30, 150, -30, -150, 0, 180, 90, -90]).tolist())
RADIUS = 5
"""Of a point, in points: no name comes nearer."""


def name_points(
    axes: Axes,
    names: Sequence[str],
    x: Float[np.ndarray, " point"],
    y: Float[np.ndarray, " point"],
    bars: Sequence[Bbox] = (),
) -> list[Annotation]:
    """Write each name at the first place around its point that is free and inside the axes.

    The figure's layout must be final. Where every place is taken a name may cover bars, and where that does not help it
    stands at its point, over something. A thin line leads to each name that does not stand right beside its point.

    Args:
        axes: with its final limits.
        names: one a point; text, never markup.
        x, y: the points, in data coordinates.
        bars: what names should not cover either, in data coordinates.

    Returns:
        The texts, one a name, in order.
    """
    pixels = axes.transData.transform(np.column_stack([x, y]))
    size = RADIUS * axes.figure.dpi / 72
    taken = [Bbox.from_bounds(across - size, up - size, 2 * size, 2 * size) for across, up in pixels]
    lines = [Bbox(axes.transData.transform(bar)) for bar in bars]
    texts: list[Annotation] = []
    for name, across, up in zip(names, x.tolist(), y.tolist(), strict=True):
        at = (across, up)
        text = _free(axes, name, at, [*taken, *lines]) or _free(axes, name, at, taken)
        text = text or _write(axes, name, at, REACH[0], DIRECTIONS[0])
        taken.append(_extent(text))
        texts.append(text)
    return texts


def _free(axes: Axes, name: str, at: tuple[float, float], taken: Sequence[Bbox]) -> Annotation | None:
    """The name at its nearest free place; None where there is none."""
    inside = axes.get_window_extent()
    for reach in REACH:
        for angle in DIRECTIONS:
            text = _write(axes, name, at, reach, angle)
            box = _extent(text)
            corners = [(box.x0, box.y0), (box.x1, box.y1)]
            if all(inside.contains(*corner) for corner in corners) and not any(box.overlaps(one) for one in taken):
                return text
            text.remove()
    return None


def _extent(text: Annotation) -> Bbox:
    """Where the letters are; an annotation's own extent would include the line to its point."""
    text.get_window_extent()  # moves the text to where its point and offset put it
    return Text.get_window_extent(text)


def _write(axes: Axes, name: str, at: tuple[float, float], reach: float, angle: float) -> Annotation:
    """The name at a distance and direction from its point, aligned so that it leads away from it."""
    across, up = float(reach * np.cos(angle)), float(reach * np.sin(angle))
    leader = {"arrowstyle": "-", "color": LEADER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        name, at, xytext=(across, up), textcoords="offset points", fontsize=9, color=INK, zorder=4,
        ha="left" if across > 1 else "right" if across < -1 else "center",
        va="bottom" if up > 1 else "top" if up < -1 else "center",
        arrowprops=leader if reach > REACH[1] else None, parse_math=False,
    )  # fmt: skip
