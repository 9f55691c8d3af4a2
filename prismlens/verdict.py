"""From a table of conditions to words: is a part of the latents used? By stated rules on intervals; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from prismlens.experiment import CLEAN

LOAD_BEARING, PARTLY, BYPASSED, UNDECIDED = "load-bearing", "partly", "bypassed", "undecided"
ALPHA = 0.05
"""Size of the tests, after Holm's correction over all conditions."""


@dataclass(frozen=True)
class Judgement:
    """A word, and the numbers behind it.

    Args:
        word: ``"load-bearing"``, ``"partly"``, ``"bypassed"`` or ``"undecided"``.
        reason: one clause.
    """

    word: str
    reason: str

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


@dataclass(frozen=True)
class Verdict:
    """What a model does with its latents, the vector and the slot judged apart.

    Args:
        vector: the vectors that are fed back.
        slot: the latent positions' keys and values, whatever vector was fed.
        accuracy: the clean run's, in words.
    """

    vector: Judgement
    slot: Judgement
    accuracy: str

    def __str__(self) -> str:
        return f"{self.accuracy}\nInjected vectors {self.vector}\nSlots (keys and values) {self.slot}"


def judge(frame: pd.DataFrame, part: str, majority: float, margin: float) -> Judgement:
    """Judge one part from the lines of its conditions.

    The rules, in this order; a change is *significant* where Holm's p is below `ALPHA`:

    0. *undecided* where a control that must be bit-equal to the clean run (``bit_equal``) is not on every item;
    1. *undecided* where the clean accuracy's interval reaches down to the majority rate: there is nothing to lose;
    2. *undecided* where the part has no condition that could be tested;
    3. *load-bearing* where every condition that removes what is particular to the item lowers accuracy significantly,
       to an interval that reaches the majority rate or lies below it, and that lies wholly below the middle between the
       majority rate and the clean interval's lower end (a wide interval alone does not count as lost);
    4. *bypassed* where every condition, noise included, is equivalent to the clean run within the margin, at least one
       removes what is particular to the item, and, where not one item changed, there were items enough to find a change
       of the size of the margin;
    5. *partly* where some condition lowers accuracy significantly;
    6. *undecided* otherwise.

    Args:
        frame: from `CorruptionTest.frame`, the clean line included.
        part: ``"vector"`` or ``"slot"``.
        majority: rate of the commonest answer.
        margin: the equivalence margin of the frame.
    """
    lines: list[dict[str, Any]] = frame.reset_index().to_dict("records")
    clean = next(line for line in lines if line["condition"] == CLEAN)
    broken = [line for line in lines if line.get("bit_equal") is True and line["same_output"] < line["n"]]
    if broken:
        return Judgement(UNDECIDED, _broken(broken))
    tested = [line for line in lines if line["part"] == part and line["p_holm"] == line["p_holm"]]
    if not clean["low"] > majority:
        return Judgement(
            UNDECIDED,
            f"clean accuracy {clean['accuracy']:.3f} [{clean['low']:.3f}, {clean['high']:.3f}] is not above the "
            f"majority rate {majority:.3f}, so nothing can be lost",
        )
    if not tested:
        return Judgement(UNDECIDED, "no condition could be tested")
    lower = [line for line in tested if line["p_holm"] < ALPHA and line["change"] < 0]
    removing = [line for line in tested if line["removes"]]
    middle = (majority + clean["low"]) / 2
    if removing and all(line in lower and line["low"] <= majority and line["high"] < middle for line in removing):
        return Judgement(LOAD_BEARING, f"without them accuracy falls to {_range(removing)} (majority {majority:.3f})")
    if removing and all(_same(line, margin) for line in tested):
        return Judgement(BYPASSED, _none(tested, margin))
    if lower:
        return Judgement(PARTLY, _deepest(lower, tested))
    return Judgement(
        UNDECIDED,
        f"no significant loss, and not equivalent within {margin:.3f}: effects smaller than "
        f"{max(line['detectable'] for line in tested):.3f} could not be found with these items",
    )


def _broken(lines: Sequence[Mapping[str, Any]]) -> str:
    """Which controls failed; nothing else can then be trusted."""
    named = ", ".join(
        f"{x['condition']!r} ({x['n'] - x['same_output']:.0f} of {x['n']:.0f} items differ)" for x in lines
    )
    return f"edits that put back what was there changed the output: {named}"


def _same(line: Mapping[str, Any], margin: float) -> bool:
    """Whether a condition is shown to change nothing. Where no item changed the test itself has nothing to go by."""
    varies = line["change_low"] < line["change_high"]
    return bool(line["equivalent"]) and bool(varies or line["detectable"] <= margin)


def _range(lines: Sequence[Mapping[str, Any]]) -> str:
    """The accuracies of some conditions, as one number or a span."""
    low, high = (f"{end(line['accuracy'] for line in lines):.3f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _none(lines: Sequence[Mapping[str, Any]], margin: float) -> str:
    """How little changed."""
    most = max(lines, key=lambda line: line["changed"])
    largest = max(abs(line["change"]) for line in lines)
    return (
        f"no condition changes accuracy by more than {largest:.3f}, all are equivalent within {margin:.3f}; "
        f"at most {most['changed']:.0f} of {most['n']:.0f} answers change"
    )


def _deepest(lower: Sequence[Mapping[str, Any]], tested: Sequence[Mapping[str, Any]]) -> str:
    """The largest significant loss, and how many conditions have one."""
    line = min(lower, key=lambda line: line["change"])
    return (
        f"{line['condition']!r} changes accuracy by {line['change']:+.3f} [{line['change_low']:+.3f}, "
        f"{line['change_high']:+.3f}], to {line['accuracy']:.3f}; {len(lower)} of {len(tested)} conditions lower it"
    )
