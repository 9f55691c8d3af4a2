"""The accuracy under each condition beside the clean one, with intervals; computes no statistics."""

from __future__ import annotations

from pathlib import Path

from prismlens.corruption import CONTROL, ELSEWHERE, SLOT, VECTOR, CorruptionTest
from prismlens.experiment import CLEAN
from prismlens.plots.style import BLUE, GREEN, GREY, ORANGE, Figure, canvas, dots, loaded, styled, titled

COLOURS = {CONTROL: GREY, VECTOR: BLUE, SLOT: ORANGE, ELSEWHERE: GREEN}
NAMES = {CONTROL: "control", VECTOR: "injected vector", SLOT: "slot", ELSEWHERE: "elsewhere"}


@styled
def corruption_profile(test: CorruptionTest | str | Path) -> Figure:
    """Accuracy and its paired change from the clean run, one line a condition.

    Grey bands: the clean run's interval, and changes inside the equivalence margin. The dotted line is the majority
    rate. Intervals are 95 %, over groups.

    Args:
        test: a corruption test, or the folder of a saved one or of a saved report.
    """
    test = loaded(test, CorruptionTest.load)
    frame = test.frame()
    clean, conditions = frame.loc[CLEAN], frame.drop(CLEAN)
    conditions = conditions[conditions.accuracy.notna()]
    shown = conditions.assign(accuracy_low=conditions.low, accuracy_high=conditions.high).iloc[::-1]
    figure, (left, right) = canvas(9.2, 1.6 + 0.28 * len(shown), 2, sharey=True)
    for part, colour in COLOURS.items():
        own = [place for place, name in enumerate(shown.part) if name == part]
        if own:
            for panel, column in ((left, "accuracy"), (right, "change")):
                dots(panel, own, shown.iloc[own], column, colour, NAMES[part], flat=True)
    left.axvspan(clean.low, clean.high, color=GREY, alpha=0.2, linewidth=0)
    left.axvline(clean.accuracy, color=GREY, linewidth=1)
    left.axvline(test.majority.rate, color=GREY, linestyle=":", linewidth=1.2)
    right.axvspan(-test.margin, test.margin, color=GREY, alpha=0.2, linewidth=0)
    right.axvline(0, color=GREY, linewidth=1)
    left.set(xlabel="accuracy (band: clean; dotted: majority)", xlim=(-0.02, 1.02))
    about = test.results.manifest
    titled(left, f"{about['model']}, {len(about['items'])} items", 50)
    right.set(xlabel=f"change from clean (band: ±{test.margin:g})")
    left.set_yticks(range(len(shown)), list(shown.index))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    for panel in (left, right):
        panel.grid(axis="x", alpha=0.25)
    return figure
