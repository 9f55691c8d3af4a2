"""The gap between the answer's source and every latent, with intervals; computes no statistics."""

from __future__ import annotations

from pathlib import Path

from prismlens.decodability import Decodability
from prismlens.plots.saved import saved_map
from prismlens.plots.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, Figure, canvas, dots, styled

COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)


@styled
def gap_profile(map_: Decodability | str | Path) -> Figure:
    """Accuracy at the answer's source minus accuracy at each latent, by depth; the readings are those of `gap`.

    A gap above 0 says that the answer can be read better at its source than at that latent. Intervals are 95 %, over
    groups.

    Args:
        map_: a map, or the folder of a saved one or of a saved report.

    Raises:
        SettingError: the map has no answer source, or no latents.
        ResultsError: the folder holds no map.
    """
    map_ = saved_map(map_)
    frame = map_.gap().rename(columns={"low": "gap_low", "high": "gap_high"})
    injected = frame[frame.reading == "injected"]
    roles, depths = list(dict.fromkeys(injected.role)), sorted(set(injected.depth))
    figure, (panel,) = canvas(2.6 + 0.9 * len(depths), 3.4)
    for number, role in enumerate(roles):
        own = injected[injected.role == role]
        shift = 0.6 * ((number + 0.5) / len(roles) - 0.5)
        dots(
            panel, [depth + shift for depth in own["depth"].tolist()], own, "gap", COLOURS[number % len(COLOURS)], role
        )
    for place, reading in enumerate(("paper", "best")):
        own = frame[frame.reading == reading]
        dots(panel, [depths[-1] + 1 + place], own, "gap", GREY, None)
    names = ["as injected", *(f"block {depth - 1}" for depth in depths[1:]), "paper", "best"]
    panel.set_xticks([*depths, depths[-1] + 1, depths[-1] + 2], names)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_ylabel("gap in accuracy")
    panel.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure
