"""The recovered fraction of every cell of a patching sweep, as coloured cells; computes no statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismlens.errors import SettingError
from prismlens.patching import PatchingSweep
from prismlens.plots.style import DIVERGING, Figure, canvas, heat, loaded, styled, titled


@styled
def patching_map(sweep: PatchingSweep | str | Path, *, at: int | None = None) -> Figure:
    """Mean recovered fraction: 1 (dark red) as good as clean, 0 (white) no better than corrupted, below 0 blue.

    Args:
        sweep: a sweep, or the folder of a saved one; of two axes, or of three with `at`. One axis becomes one row.
        at: entry of the first axis of a sweep with three.

    Raises:
        SettingError: the sweep has other axes, or `at` is out of range or not needed.
    """
    sweep = loaded(sweep, PatchingSweep.load)
    values = (sweep.attribution if sweep.results.manifest["method"] == "attribution" else sweep.tensor).numpy()
    axes, labels = list(sweep.axes), [[str(label) for label in own] for own in sweep.labels.values()]
    title = f"{sweep.n_pairs} pairs, {sweep.n_excluded} left out"
    if (at is None) != (values.ndim < 3) or values.ndim > 3 or (at is not None and not 0 <= at < len(values)):
        raise SettingError(
            f"a sweep over {', '.join(axes)} of shape {values.shape}, at={at}",
            needed="two axes, or three and `at`, an entry of the first",
        )
    if at is not None:
        title = f"{axes[0]} {labels[0][at]}; {title}"
        values, axes, labels = values[at], axes[1:], labels[1:]
    if values.ndim == 1:
        values, axes, labels = values[None], ["", *axes], [[""], *labels]
    reach = max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    figure, (panel,) = canvas(2.6 + 0.5 * len(labels[1]), 1.6 + 0.3 * len(labels[0]))
    heat(panel, values, labels[0], labels[1], colours=DIVERGING, low=-reach, high=reach, label="recovered")
    panel.set(xlabel=axes[1], ylabel=axes[0])
    titled(panel, title, 60)
    return figure
