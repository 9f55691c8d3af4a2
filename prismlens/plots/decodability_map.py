"""The map of what a probe reads, as coloured cells; computes no statistics."""

from __future__ import annotations

from pathlib import Path

from prismlens.decodability import Decodability
from prismlens.errors import SettingError
from prismlens.plots.saved import saved_map
from prismlens.plots.style import SEQUENTIAL, Figure, canvas, heat, styled, titled

COLUMNS = ("accuracy", "selectivity")


@styled
def decodability_map(map_: Decodability | str | Path, *, column: str = "accuracy") -> Figure:
    """Roles x depth; the scale of accuracies begins at the majority rate, so that the darkest is "nothing there".

    Args:
        map_: a map, or the folder of a saved one or of a saved report.
        column: ``"accuracy"`` (held out) or ``"selectivity"`` (accuracy minus that on the control task).

    Raises:
        SettingError: no such column.
        ResultsError: the folder holds no map.
    """
    map_ = saved_map(map_)
    if column not in COLUMNS:
        raise SettingError(f"column={column!r}", needed=f"one of {', '.join(map(repr, COLUMNS))}")
    frame = map_.frame(n_resamples=200)  # the picture shows no interval
    roles, depths = list(dict.fromkeys(frame.role)), sorted(set(frame.depth))
    table = frame.pivot(index="role", columns="depth", values=column).loc[roles, depths]
    figure, (panel,) = canvas(2.4 + 0.62 * len(depths), 1.4 + 0.32 * len(roles))
    majority = float(frame.majority.iloc[0])
    low = majority if column == "accuracy" else 0.0
    names = ["embedding" if depth == 0 else "norm" if depth == depths[-1] else f"block {depth - 1}" for depth in depths]
    heat(panel, table.to_numpy(dtype=float), roles, names, colours=SEQUENTIAL, low=low, high=1.0, label=column)
    about = map_.results.manifest
    title = f"{about['model']}: probes for {about['target']!r}, {column}; majority {majority:.2f}"
    titled(panel, title, 60)
    return figure
