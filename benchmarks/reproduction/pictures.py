"""Pictures of the reproduction from the table of models; reads no files and runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

MARKS = {"lvr": "o", "n-lvr": "s", "d-lvr": "^", "p-lvr-2": "D", "p-lvr-3": "v"}
COLOURS = {"lvr": "#0072B2", "n-lvr": "#E69F00", "d-lvr": "#009E73", "p-lvr-2": "#CC79A7", "p-lvr-3": "#D55E00"}
"""A shape and a colour for each variant, which differ for colour-blind readers and in grey."""


def scatter(models: pd.DataFrame, protocols: Sequence[str], x: str, y: str, path: Path) -> None:
    """One point a model (small) and one a variant (large, mean over seeds), a panel a protocol."""
    figure, axes = plt.subplots(1, len(protocols), figsize=(4.6 * len(protocols), 3.8), squeeze=False, sharey=True)
    for panel, protocol in zip(axes[0], protocols, strict=True):
        chosen = models[models.protocol == protocol]
        for name, mark in MARKS.items():
            own = chosen[chosen.variant == name].dropna(subset=[x, y])
            if len(own):
                style = {"marker": mark, "color": COLOURS[name], "linestyle": "none"}
                panel.plot(own[x], own[y], markersize=4, alpha=0.45, **style)
                panel.plot(own[x].mean(), own[y].mean(), markersize=10, label=name, **style)
        panel.set(xlabel=x, title=f"protocol = {protocol}")
        _plain(panel)
    axes[0, 0].set_ylabel(y)
    axes[0, -1].legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_changes(models: pd.DataFrame, conditions: Sequence[str], path: Path) -> None:
    """Change of accuracy under each condition: a column of points a condition, a mark a variant, a point a seed."""
    figure, panel = plt.subplots(figsize=(9, 3.8))
    for shift, (name, mark) in enumerate(MARKS.items()):
        own = models[models.variant == name]
        for place, condition in enumerate(conditions):
            if condition not in own:
                continue
            at = place + (shift - 2) * 0.14
            style = {"marker": mark, "color": COLOURS[name], "linestyle": "none"}
            panel.plot([at] * len(own), own[condition], markersize=3.5, alpha=0.45, **style)
            panel.plot(at, own[condition].mean(), markersize=8, label=name if place == 0 else None, **style)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xticks(range(len(conditions)), conditions)
    panel.set(ylabel="change of accuracy", title=f"protocol = {models.protocol.iloc[0]}")
    panel.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _plain(panel)
    _save(figure, path)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
