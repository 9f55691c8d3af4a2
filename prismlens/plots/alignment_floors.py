"""How close latents are to their targets at each step, beside what unrelated targets give; computes no statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismlens.alignment import Alignment
from prismlens.plots.saved import saved_alignment
from prismlens.plots.style import BLUE, GREEN, ORANGE, PINK, Figure, canvas, dots, styled

SHOWN = {
    "cosine": (BLUE, "own target"),
    "cosine_other": (ORANGE, "another item's target"),
    "cosine_mean": (GREEN, "mean target of the others"),
    "cosine_box": (PINK, "best other box of the image"),
}
"""Column -> colour and name; drawn where the frame has it."""


@styled
def alignment_floors(near: Alignment | str | Path) -> Figure:
    """Cosine to the own target and to the floors, one panel a mode, latent steps from left to right.

    Only the distance between the own target and a floor says that a latent knows its item. Intervals are 95 %, over
    groups; a floor that some items do not have is the mean of those that do.

    Args:
        near: an alignment, or the folder of a saved report.
    """
    near = saved_alignment(near)
    frame = near.frame(by_step=True).reset_index()
    modes = list(dict.fromkeys(frame["mode"]))
    figure, panels = canvas(1.2 + 3.6 * len(modes), 3.2, len(modes), sharey=True)
    for panel, mode in zip(panels, modes, strict=True):
        own = frame[frame["mode"] == mode]
        found = [name for name in SHOWN if name in own and np.isfinite(np.asarray(own[name], dtype=float)).any()]
        for place, name in enumerate(found):
            colour, label = SHOWN[name]
            dots(panel, np.arange(len(own)) + 0.12 * (place - (len(found) - 1) / 2), own, name, colour, label)
        panel.set(title=mode, xlabel="latent step")
        panel.set_xticks(range(len(own)), [str(step) for step in own.step])
        panel.axhline(0, color="black", linewidth=0.6)
        panel.grid(axis="y", alpha=0.25)
    panels[0].set_ylabel("cosine")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure
