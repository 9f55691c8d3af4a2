"""One point a model: two values against each other, an interval on each, names beside the points; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from prismlens.errors import SettingError
from prismlens.plots.names import name_points
from prismlens.plots.style import BLUE, Picture, styled, svg

__all__ = ["Axis", "models_figure", "svg"]

BAR, INK, GRID = "#9bbfd6", "#333333", "#e6e6e6"
SIZE, DPI = (6.8, 4.8), 150


@dataclass(frozen=True, eq=False)
class Axis:
    """One value of every model.

    Args:
        label: stands at the axis.
        values: one a model; NaN where it was not measured.
        low: lower ends.
        high: upper ends.
    """

    label: str
    values: Float[np.ndarray, " model"]
    low: Float[np.ndarray, " model"]
    high: Float[np.ndarray, " model"]

    def errors(self) -> Float[np.ndarray, "2 model"]:
        """Distances of the ends from the values, below and above."""
        return np.stack([self.values - self.low, self.high - self.values])

    def only(self, kept: np.ndarray) -> Axis:
        """The same of some models."""
        return Axis(self.label, self.values[kept], self.low[kept], self.high[kept])


@styled
def models_figure(names: Sequence[str], x: Axis, y: Axis, *, note: str = "") -> Figure:
    """A scatter of models; those that lack one of the values are not in it.

    Args:
        names: one a model; text, never markup.
        x, y: the values and their intervals.
        note: stands above, for example the correlation.

    Raises:
        SettingError: no model has both values.
    """
    kept = np.isfinite(x.values) & np.isfinite(y.values)
    if not kept.any():
        raise SettingError(
            f"no model has both {x.label!r} and {y.label!r}", needed="at least one", cause="models without latents"
        )
    across, up = x.only(kept), y.only(kept)
    figure = Picture(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.errorbar(
        across.values, up.values, xerr=across.errors(), yerr=up.errors(), fmt="o", color=BLUE, ecolor=BAR,
        markersize=6, elinewidth=1.2, zorder=3,
    )  # fmt: skip
    axes.set_xlabel(across.label, parse_math=False)
    axes.set_ylabel(up.label, parse_math=False)
    axes.grid(color=GRID, linewidth=0.6, zorder=0)
    axes.margins(0.08)
    if note:
        axes.set_title(note, fontsize=9, loc="left", color=INK, parse_math=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is measured from here on must stay where it is
    shown = [name for name, has in zip(names, kept, strict=True) if has]
    name_points(axes, shown, across.values, up.values, _bars(across, up))
    return figure


def _bars(x: Axis, y: Axis) -> list[Bbox]:
    """The error bars of all points, as boxes without a width."""
    level = zip(x.low, y.values, x.high, y.values, strict=True)
    upright = zip(x.values, y.low, x.values, y.high, strict=True)
    return [Bbox([[x0, y0], [x1, y1]]) for x0, y0, x1, y1 in (*level, *upright)]
