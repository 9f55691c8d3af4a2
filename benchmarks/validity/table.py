"""Writes docs/validity.md from the committed records alone; runs no model and no simulation.

python benchmarks/validity/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
PAGE = Path(__file__).parents[2] / "docs" / "validity.md"
HEAD = """# Does the instrument say what is true?

Made by `make validity` from `benchmarks/validity/records`. Intervals are 95 %.

## Models of known mechanism

What is used is known by construction: *bottleneck* reads the vectors that are fed back, *slot* reads the latent
positions' keys and values whatever vector was fed, *bypass* reads neither. Each line is a new set of held-out items.
"""
ERASURE = """
*Erased*: the content of the answer is taken out of every latent by least squares (erasers fitted on other items);
*read* is what a linear probe of the clean latents still gets right, *change* that of the model's accuracy. *Control*
erases as many dimensions, fitted on shuffled labels.
"""
SIMULATED = """
## Worlds without an effect, and with a planted one

A null line holds where its rate of errors is not above the stated one, a power line where its rate of finds is not
below, in both cases beyond what the exact binomial interval allows.
"""


def load(kind: str) -> list[dict[str, Any]]:
    """The records of one kind, by name."""
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob(f"{kind}-*.json"))]


def holds(line: dict[str, Any]) -> bool:
    """Whether a simulation's rate agrees with what is stated."""
    return line["low"] <= line["stated"] if line["kind"] == "null" else line["high"] >= line["stated"]


def text() -> str:
    """The page."""
    models, worlds = load("mechanism"), load("simulation")
    right = sum(one["said"] == one["expected"] for one in models)
    parts = [HEAD, _table(["model", "items", "vector", "slot", "clean", "zeroed", "swapped", "slot deleted"],
        [[one["model"], f"{one['n']}, seed {one['items_seed']}", *_words(one), *map(_ends, one["accuracy"].values())]
         for one in models])]  # fmt: skip
    parts.append(f"\n{right} of {len(models)} verdicts are right in both parts.\n")
    parts += [ERASURE, _table(
        ["model", "seed", "read, clean", "read, erased", "read, control", "change, erased", "change, control"],
        [[one["model"], str(one["items_seed"]),
          *(_ends(one["erasure"]["read"][name]) for name in ("clean", "erased", "control")),
          *(_ends(one["erasure"]["change"][name], "+") for name in ("erased", "control"))]
         for one in models])]  # fmt: skip
    parts += [SIMULATED, _table(
        ["test", "what is true", "worlds", "stated", "rate of yes", "holds"],
        [[one["what"], one["world"], str(one["worlds"]),
          f"{'at most' if one['kind'] == 'null' else 'at least'} {one['stated']:.2f}",
          _ends([one["yes"] / one["worlds"], one["low"], one["high"]]), "yes" if holds(one) else "**no**"]
         for one in sorted(worlds, key=lambda one: one["kind"])])]  # fmt: skip
    return "".join(parts)


def write() -> None:
    """Write the page."""
    PAGE.write_text(text())


def _words(one: dict[str, Any]) -> list[str]:
    """What was said of the vector and of the slot, and what should have been where it differs."""
    return [
        said if said == expected else f"**{said}** (is {expected})"
        for said, expected in zip(one["said"], one["expected"], strict=True)
    ]


def _ends(numbers: list[float], sign: str = "") -> str:
    """A number with its interval."""
    middle, low, high = numbers
    return f"{middle:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _table(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in ([*head], ["---"] * len(head), *lines))


if __name__ == "__main__":
    write()
