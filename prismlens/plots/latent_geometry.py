"""Whether latents have collapsed: how alike those of different items are, what they span, and how long they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismlens.alignment import Alignment
from prismlens.errors import SettingError
from prismlens.plots.saved import saved_alignment
from prismlens.plots.style import BLUE, GREEN, ORANGE, Figure, canvas, dots, styled

COLOURS = {"free": BLUE, "teacher-forced": ORANGE, "target": GREEN}
PANELS = {"cross_cosine": "cosine between items", "participation_ratio": "participation ratio", "cka": "CKA to targets"}


@styled
def latent_geometry(near: Alignment | str | Path) -> Figure:
    """Latents by step beside their targets: cross-item cosine, participation ratio, CKA; and norms of all vectors.

    A latent that is nearly the same for every item has a cosine near 1 and few dimensions; the targets' own values,
    from the same items, say what would be usual. Intervals are 95 %, jackknife or bootstrap over groups.

    Args:
        near: an alignment, or the folder of a saved report.

    Raises:
        SettingError: the alignment was saved without geometry.
    """
    near = saved_alignment(near)
    if near.geometry.empty or near.lengths.empty:
        raise SettingError(
            "an alignment without geometry", needed="one that `alignment` measured", cause="it was built by hand"
        )
    figure, panels = canvas(12, 3.4, len(PANELS) + 1)
    for panel, (name, title) in zip(panels, PANELS.items(), strict=False):
        for place, (mode, colour) in enumerate(COLOURS.items()):
            own = near.geometry[near.geometry["mode"] == mode]
            if np.isfinite(np.asarray(own[name], dtype=float)).any():
                dots(panel, np.asarray(own.step) + 0.12 * (place - 1), own, name, colour, mode)
        panel.set(title=title, xlabel="latent step", xticks=sorted(set(near.geometry.step)))
        panel.grid(axis="y", alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    norms = near.norms().iloc[::-1]
    dots(panels[-1], np.arange(len(norms)), norms, "norm", BLUE, flat=True)
    panels[-1].set_yticks(range(len(norms)), [str(kind) for kind in norms.index])
    panels[-1].set(title="mean norm", xlim=(0, None))
    panels[-1].grid(axis="x", alpha=0.25)
    return figure
