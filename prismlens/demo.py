"""The demonstration: the instrument on models whose true answer is known, and on one where it is not."""

from __future__ import annotations

from collections.abc import Callable

from prismlens.data.load import load_items
from prismlens.prism import prism
from prismlens.trace import load

MODELS = {
    "tiny/lvr": "nothing is known: it was trained with the published loss, at lambda 3 instead of 0.1",
    "tiny/bottleneck": "the injected vectors carry the answer",
    "tiny/slot": "the slots carry the answer, the injected vectors do not",
    "tiny/bypass": "neither vectors nor slots are used",
}
"""Shipped model -> what its construction says."""


def demo(n: int, *, echo: Callable[[str], object] = print, progress: bool = True) -> None:
    """Ask every model of `MODELS` about the same held-out scenes, and print table and verdict beside the truth.

    Args:
        n: how many scenes.
        echo: prints a text.
        progress: show bars.
    """
    items = load_items("shapes", n=n)
    for name, truth in MODELS.items():
        report = prism(load(name), items, progress=progress)
        echo(report.table())
        echo(f"{report.verdict}\nBy construction: {truth}.\n")
