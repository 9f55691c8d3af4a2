"""How one shape looks, and the clutter behind it; knows nothing of scenes or questions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

CELL = 28
"""Pixels of a cell's side."""

COLORS = {
    "red": (205, 35, 35),
    "orange": (235, 130, 25),
    "yellow": (230, 215, 50),
    "green": (40, 160, 60),
    "cyan": (60, 200, 210),
    "blue": (45, 75, 215),
    "purple": (140, 50, 175),
    "white": (238, 238, 238),
}

Corners = tuple[int, int, int, int]
Rgb = tuple[int, ...]


def draw_shape(canvas: ImageDraw.ImageDraw, shape: str, corners: Corners, rgb: Rgb) -> None:
    """Draw the named shape so that it fills the pixel box."""
    _DRAW[shape](canvas, corners, rgb)


def draw_clutter(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Small pale dots and lines that answer no question."""
    for _ in range(int(rng.integers(4, 10))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        grey = tuple(int(v) for v in rng.integers(60, 170) + rng.integers(-15, 16, 3))
        if rng.random() < 0.5:
            canvas.ellipse((x, y, x + 2, y + 2), fill=grey)
        else:
            canvas.line((x, y, x + int(rng.integers(-6, 7)), y + int(rng.integers(-6, 7))), fill=grey)


def _circle(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
    x1, y1, x2, y2 = corners
    canvas.ellipse((x1, y1, x2 - 1, y2 - 1), fill=rgb)


def _square(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
    x1, y1, x2, y2 = corners
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), fill=rgb)


def _ring(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
    x1, y1, x2, y2 = corners
    canvas.ellipse((x1, y1, x2 - 1, y2 - 1), outline=rgb, width=max(3, (x2 - x1) // 5))


def _bowl(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
    x1, y1, x2, y2 = corners
    canvas.pieslice((x1, y1 - (y2 - y1), x2 - 1, y2 - 1), 0, 180, fill=rgb)


def _cross(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
    x1, y1, x2, y2 = corners
    third = (x2 - x1) // 3
    canvas.rectangle((x1 + third, y1, x2 - 1 - third, y2 - 1), fill=rgb)
    canvas.rectangle((x1, y1 + third, x2 - 1, y2 - 1 - third), fill=rgb)


def _polygon(points: list[tuple[float, float]]) -> Callable[[ImageDraw.ImageDraw, Corners, Rgb], None]:
    """A painter of the polygon whose points are given in the unit square."""

    def paint(canvas: ImageDraw.ImageDraw, corners: Corners, rgb: Rgb) -> None:
        x1, y1, x2, y2 = corners
        scale_x, scale_y = x2 - 1 - x1, y2 - 1 - y1
        canvas.polygon([(x1 + px * scale_x, y1 + py * scale_y) for px, py in points], fill=rgb)

    return paint


def _star_points() -> list[tuple[float, float]]:
    """Five outer and five inner points, the outer radius half the box."""
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    radii = [0.5 if i % 2 == 0 else 0.2 for i in range(10)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_DRAW: dict[str, Callable[[ImageDraw.ImageDraw, Corners, Rgb], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon([(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]),
    "diamond": _polygon([(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]),
    "cross": _cross,
    "star": _polygon(_star_points()),
    "ring": _ring,
    "bowl": _bowl,
}
SHAPES = tuple(_DRAW)
"""Every shape's name."""
