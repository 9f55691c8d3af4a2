"""How every picture looks, and its form as SVG; knows nothing of what is drawn."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from prismlens.errors import SettingError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SettingError(
        "a picture without matplotlib",
        needed="the extra `plots`",
        fix="pip install 'prismlens[plots]'; the numbers are in .frame() and .table()",
    ) from error

BLUE, ORANGE, GREEN, RED, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#595959"
"""Okabe and Ito's colours (2008), which colour-blind readers can tell apart; each goes with a mark of its own."""
MARKS: Mapping[str, str] = MappingProxyType({BLUE: "o", ORANGE: "s", GREEN: "^", RED: "D", PINK: "v", GREY: "x"})
"""Colour -> mark, so that pictures can be read in grey too."""
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps: the first is as good for colour-blind readers as for others, and rises in lightness."""
SETTINGS: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path",
    "svg.hashsalt": "prismlens", "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
"""matplotlib's settings while a picture is drawn; the user's own are left alone."""
Kept = TypeVar("Kept")
Asked = ParamSpec("Asked")


class Picture(Figure):
    """A figure that a notebook shows without pyplot, which would keep every figure alive."""

    def _repr_svg_(self) -> str:
        return svg(self)


def styled(draw: Callable[Asked, Figure]) -> Callable[Asked, Figure]:
    """The function itself, drawing under `SETTINGS`."""

    @wraps(draw)
    def under_settings(*args: Asked.args, **kwargs: Asked.kwargs) -> Figure:
        with matplotlib.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return under_settings


def canvas(width: float, height: float, panels: int = 1, **kwargs: Any) -> tuple[Picture, list[Axes]]:
    """A figure and its panels side by side.

    Args:
        width, height: inches, of the whole figure.
        panels: how many.
        kwargs: of `Figure.subplots`.
    """
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, **kwargs)
    return figure, list(axes[0])


def svg(figure: Figure) -> str:
    """The figure as one SVG element that refers to nothing outside itself; the same figure gives the same text."""
    out = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def loaded(given: Kept | str | Path, load: Callable[[str | Path], Kept]) -> Kept:
    """The object itself, or what its saved folder holds."""
    return load(given) if isinstance(given, (str, Path)) else given


def titled(panel: Axes, text: str, width: int) -> None:
    """A title in lines of at most `width` characters; a dollar sign in it does not begin mathematics."""
    panel.set_title(textwrap.fill(text, width).replace("$", r"\$"), loc="left")


def dots(panel: Axes, x: Any, line: Any, name: str, colour: str, label: str | None = None, flat: bool = False) -> None:
    """Estimates with their intervals, from columns ``name, name_low, name_high`` of a frame.

    Args:
        panel: drawn into.
        x: one place an estimate.
        line: the frame.
        name: of the estimate.
        colour: one of this module's; brings its mark.
        label: in the legend.
        flat: intervals lie along x, and `x` is the place on y.
    """
    value = np.asarray(line[name], dtype=float)
    ends = [np.asarray(line.get(f"{name}_{end}", line[name]), dtype=float) for end in ("low", "high")]
    reach = np.abs(np.stack([value - ends[0], ends[1] - value]))
    style = {"fmt": MARKS[colour], "color": colour, "markersize": 5, "capsize": 2.5, "linewidth": 1.2, "label": label}
    if flat:
        panel.errorbar(value, x, xerr=reach, **style)
    else:
        panel.errorbar(x, value, yerr=reach, **style)


def heat(
    panel: Axes, values: np.ndarray, rows: list[str], columns: list[str], *, colours: str, low: float, high: float,
    label: str,
) -> None:  # fmt: skip
    """A table of numbers as coloured cells with the numbers written in them, where there is room.

    Args:
        panel: drawn into.
        values: rows x columns; NaN stays white.
        rows, columns: their names.
        colours: a colour map.
        low, high: the numbers at its ends.
        label: of the colour bar.
    """
    drawn = panel.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    panel.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns)) > 4 else 0, ha="right")
    panel.set_yticks(range(len(rows)), rows)
    panel.spines[:].set_visible(False)
    assert panel.figure is not None
    panel.figure.colorbar(drawn, ax=panel, label=label, fraction=0.04, pad=0.02)
    if values.size > 400:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = drawn.cmap(drawn.norm(value))
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7)
