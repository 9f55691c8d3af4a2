"""Losses and watched diagnostics over the steps of a training run; reads the run's folder, and trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from prismlens.errors import ResultsError
from prismlens.plots.style import BLUE, GREEN, MARKS, ORANGE, PINK, RED, Figure, canvas, styled

FINISHED, STATE, WATCHED = "training.json", "trainer_state.json", "prism/"
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)
LINES = ("-", "--", ":")
AWAY = ("epoch", "step", "total_flos")
"""What a log line has beside measurements; so have names that begin with ``train_``, the run's totals."""
EMPTY = {"needed": "at least one logged step", "cause": "a shipped model, which keeps its last losses only"}


@styled
def training_curves(folder: str | Path) -> Figure:
    """What a run logged, by step: the loss and its terms, the learning rate, and what `PrismCallback` watched.

    Bands are the intervals that were logged. Panels without any number are left out.

    Args:
        folder: of a finished run's model, or of one that goes on (``NAME.partial``, with its checkpoints).

    Raises:
        ResultsError: the folder has no log.
    """
    log = logged(folder)
    ends = {name for name in log if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in log}
    own = [name for name in log if name not in AWAY and not name.startswith("train_") and name not in ends]
    groups = {
        "losses": [name for name in own if "loss" in name],
        "learning rate": [name for name in own if name == "learning_rate"],
        "diagnostics": [name for name in own if name.startswith(WATCHED)],
    }
    shown = {title: names for title, names in groups.items() if names}
    if not shown:
        raise ResultsError(
            f"{str(folder)!r} has a log without losses",
            needed="at least one logged step",
            cause="a shipped model keeps its last losses only",
        )
    figure, panels = canvas(0.8 + 4 * len(shown), 3.8, len(shown))
    for panel, (title, names) in zip(panels, shown.items(), strict=True):
        for number, name in enumerate(names):
            colour, style = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
            there = log[log[name].notna()]
            every = max(1, len(there) // 8)
            panel.plot(there.step, there[name], color=colour, linestyle=style, marker=MARKS[colour], markersize=4,
                       markevery=every, linewidth=1.2, label=name.removeprefix(WATCHED))  # fmt: skip
            if {f"{name}_low", f"{name}_high"} <= ends:
                panel.fill_between(there.step, there[f"{name}_low"], there[f"{name}_high"], color=colour, alpha=0.15)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def logged(folder: str | Path) -> pd.DataFrame:
    """One line a log entry, with ``step`` and every number that any entry has; NaN where it was not logged.

    Raises:
        ResultsError: the folder has no log, or the file is cut short.
    """
    place = Path(folder).expanduser()
    checkpoints = sorted(place.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    files = [place / FINISHED, place / STATE, *(one / STATE for one in reversed(checkpoints))]
    found = [path for path in files if path.is_file()]
    if not found:
        raise ResultsError(
            f"{str(folder)!r} has no log of a training run",
            needed=f"{FINISHED}, or {STATE} in it or in a checkpoint",
            cause="another folder, or a run that has not saved a checkpoint yet",
            fix="give the folder that was passed to train as `out`, or NAME.partial while it runs",
        )
    try:
        content: dict[str, Any] = json.loads(found[0].read_text())
    except ValueError as error:
        raise ResultsError(f"{found[0]} is not JSON: {error}", cause="the file was cut short") from error
    entries = content.get("log", content.get("log_history")) or []
    numbers = [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in entries if "step" in entry]
    if not numbers:
        raise ResultsError(
            f"{found[0]} has an empty log",
            needed="at least one logged step",
            cause="a shipped model keeps its last losses only",
        )
    return pd.DataFrame(numbers).sort_values("step", kind="stable", ignore_index=True)
