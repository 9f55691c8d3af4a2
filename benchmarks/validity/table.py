"""Writes docs/validity.md, and the README's table, from the committed records alone; runs no model and no simulation.

python benchmarks/validity/table.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import readings
import records
from known import KNOWN, ROUTED
from simulations import SIMULATIONS

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "validity.md", ROOT / "README.md"
MARKED = re.compile(r"(<!-- validity -->\n).*?(<!-- /validity -->)", re.DOTALL)
WORDS = Path(__file__).parent / "words"
"""The page's prose, one file a section."""
MIXED = ("mixture", "routed")
"""Kinds of mixtures, and the first words of their names."""
Record = dict[str, Any]


def models() -> list[Record]:
    """The records of all models that have something to find, shipped ones first."""

    def order(one: Record) -> tuple[str, float, int]:
        return one["model"], one["share"], one["items_seed"]

    return [one for kind in ("mechanism", *MIXED) for one in sorted(records.read(kind).values(), key=order)]


def page() -> str:
    """The whole page."""
    known, controls, worlds = models(), *([*records.read(kind).values()] for kind in ("sanity", "simulation"))
    said, versions = counts(known), _versions([*known, *controls, *worlds])
    parts = [
        _words("head", versions=versions), missing(), verdicts(known), _words("verdicts", **said),
        planted(list(records.read("mixture").values())), _words("published"), published(known),
        _words("published-after", **said), nothing(controls), _words("erasure", **beyond(known)),
        erasure(known), _words("worlds"), simulated(worlds), failing(worlds),
    ]  # fmt: skip
    return "\n".join(part.strip() + "\n" for part in parts if part.strip())


def counts(known: list[Record]) -> dict[str, str]:
    """How often each reading is right, and how well each ranks the models by what is true of them."""
    share, probed = [one["share"] for one in known], [one for one in known if one["paper_probe"] is not None]
    pairs = [pair for one in known for pair in zip(one["fair"]["said"], one["expected"], strict=True)]
    used = [_use(one) for one in known]
    largest = [max(map(abs, one["paper"]["changes"].values())) for one in known]
    share_probed = [one["share"] for one in probed]
    gap = [one["paper_probe"]["a"] - one["paper_probe"]["b"] for one in probed]
    return {
        "lines": str(len(known)), "judgements": str(len(pairs)),
        "models": str(len({_name(one) for one in known})), "routed": str(sum(map(_is_routed, known))),
        "networks": str(len({one["revision"] for one in known if not _is_routed(one)})),
        "right": str(sum(said == truth for said, truth in pairs)),
        "undecided": str(sum(said == "undecided" for said, _ in pairs)), "errors": _errors(known),
        "wrong": str(sum(said not in (truth, "undecided") for said, truth in pairs)),
        "rank": f"{readings.ranks(share, [one['fair']['reliance'][0] for one in known]):.2f}",
        "paper_right": str(sum(one["paper"]["said"] == truth for one, truth in zip(known, used, strict=True))),
        "probe_right": str(sum(one["paper"]["probe_said"] == _use(one) for one in probed)), "probed": str(len(probed)),
        "paper_rank": f"{readings.ranks(share, largest):.2f}", "gap_rank": f"{readings.ranks(share_probed, gap):.2f}",
    }  # fmt: skip


def missing() -> str:
    """Which records are still to be made, if any."""
    made = {path.stem for path in records.RECORDS.glob("*.json")}
    names = [*(f"simulation-{name}" for name in SIMULATIONS), *KNOWN, *ROUTED]
    left = [name for name in names if name not in made]
    return f"**Still to be made**: {', '.join(left)}.\n" if left else ""


def verdicts(known: list[Record]) -> str:
    """What the verdict says of each model, and the numbers behind it."""
    head = ["model", "items", "need the vector", "vector", "slot", "clean", "swapped", "slot deleted", "reliance"]
    return _table(head, [
        [one["model"], f"{one['n']}, seed {one['items_seed']}", f"{one['share']:.2f}", *_said(one),
         *(_ends(one["fair"]["accuracy"][name]) for name in ("clean", "swap", "slot: keys and values deleted")),
         _ends(one["fair"]["reliance"])] for one in known
    ])  # fmt: skip


def planted(mixtures: list[Record]) -> str:
    """Item by item: who loses the right answer under zeros."""
    if not mixtures:
        return ""
    return _words("planted") + "\n" + _table(
        ["model", "need the vector", "right of these", "zeros make wrong", "right of the others", "zeros make wrong "],
        [[_name(one), f"{one['share']:.2f}", *map(str, (*one["fair"]["lost"]["True"], *one["fair"]["lost"]["False"]))]
         for one in mixtures],
    )  # fmt: skip


def published(known: list[Record]) -> str:
    """What the published test says of each model."""
    head = ["model", "items", "true of the latents", "zero", "noise .1", "noise 1", "swap", "reads as", "(a)", "(b)",
            "probe reads as"]  # fmt: skip
    lines = []
    for one in known:
        truth, changes, probe = _use(one), one["paper"]["changes"], one["paper_probe"]
        lines.append([
            _name(one), f"seed {one['items_seed']}", truth,
            *(f"{changes[name]:+.3f}" for name in ("zero", "noise 0.1 raw", "noise 1 raw", "swap")),
            _held(one["paper"]["said"], truth),
            *(f"{probe[end]:.3f}" if probe else "-" for end in ("a", "b")),
            _held(one["paper"]["probe_said"], truth) if probe else "-",
        ])  # fmt: skip
    return _table(head, lines)


def nothing(controls: list[Record]) -> str:
    """Controls in which there is nothing to find."""
    return "" if not controls else _words("nothing") + "\n" + _table(
        ["control", "clean", "majority", "vector", "slot", "read at the latents", "majority ", "as published"],
        [[one["model"], _ends(one["fair"]["accuracy"]["clean"]), f"{one['fair']['majority']:.3f}", *_said(one),
          _found(one["erasure"]), f"{one['erasure']['majority']:.3f}", one["paper"]["said"]]
         for one in controls],
    )  # fmt: skip


def erasure(known: list[Record]) -> str:
    """What is read at the latents and what erasing it does."""
    return _table(
        ["model", "read, clean", "read, erased", "read, control", "change, erased", "change, control"],
        [[f"{one['model']}, {one['share']:.2f}, seed {one['items_seed']}",
          *(_ends(one["erasure"]["read"][name]) for name in ("clean", "erased", "control")),
          *(_ends(one["erasure"]["change"][name], "+") for name in ("erased", "control"))]
         for one in known if one["erasure"] is not None],
    )  # fmt: skip


def beyond(known: list[Record]) -> dict[str, str]:
    """Of the lines whose model needs no vector: how many lose more by erasure than by its control, intervals apart."""
    free = [
        one["erasure"]["change"] for one in known if one["erasure"] is not None and one["expected"][0] == "bypassed"
    ]
    return {"beyond": str(sum(one["erased"][2] < one["control"][1] for one in free)), "free": str(len(free))}


def simulated(worlds: list[Record]) -> str:
    """Every test in worlds without an effect and with a planted one."""
    return _table(
        ["test", "what is true", "worlds", "stated", "rate of yes", "holds"],
        [[one["what"], one["world"], str(one["worlds"]), f"{BOUNDS[one['kind']]} {one['stated']:.3f}",
          _ends([one["yes"] / one["worlds"], one["low"], one["high"]]), "yes" if holds(one) else "**no**"]
         for one in sorted(worlds, key=lambda one: one["kind"])],
    )  # fmt: skip


def failing(worlds: list[Record]) -> str:
    """The lines that do not hold, said once more in a sentence."""
    lines = [f"{one['what']} ({one['world']})" for one in worlds if not holds(one)]
    return f"**Does not hold**: {'; '.join(lines)}." if lines else ""


BOUNDS = {"null": "at most", "power": "at least", "exact": "is"}
"""How a simulation's rate of yes should stand to what is stated."""


def holds(line: Record) -> bool:
    """Whether a simulation's rate agrees with what is stated, as far as its exact binomial interval can tell."""
    not_above, not_below = line["low"] <= line["stated"], line["high"] >= line["stated"]
    return {"null": not_above, "power": not_below, "exact": not_above and not_below}[line["kind"]]


def brief() -> str:
    """The README's table: one line a shipped model, the first set of items, and the counts of the whole page."""
    first = [one for one in records.read("mechanism").values() if one["items_seed"] == 11]
    lines = [
        [f"`{one['model']}`", " / ".join(one["expected"]), " / ".join(one["fair"]["said"]),
         *(_held(one["paper"][which], _use(one)) for which in ("said", "probe_said"))] for one in first
    ]  # fmt: skip
    head = ["model", "true of vector / slot", "verdict", "published corruption test", "published probe"]
    rest = failing(list(records.read("simulation").values()))
    return _table(head, lines) + "\n" + _words("brief", **counts(models()), failing=rest).strip() + "\n"


def write() -> None:
    """Write the page and the README's table."""
    PAGE.write_text(page())
    README.write_text(MARKED.sub(lambda found: found[1] + brief() + found[2], README.read_text()))


def _name(one: Record) -> str:
    """The model, and of a mixture the share that is planted."""
    return one["model"] + (f", {one['share']:.2f}" if _is_mixture(one) else "")


def _is_mixture(one: Record) -> bool:
    """Whether only a part of the items is planted to need the vectors."""
    return one["model"].split()[0] in MIXED


def _is_routed(one: Record) -> bool:
    """Whether the line is the mixed rows of two models rather than a model of its own."""
    return one["model"].split()[0] == "routed"


def _errors(known: list[Record]) -> str:
    """The judgements that are wrong, in words; ``none`` where there is none."""
    found = [
        f"the {part} of {_name(one)} (seed {one['items_seed']}) is called {said} and is {truth}"
        for one in known
        for part, said, truth in zip(("vector", "slot"), one["fair"]["said"], one["expected"], strict=True)
        if said not in (truth, "undecided")
    ]
    return "; ".join(found) or "none"


def _use(one: Record) -> str:
    """Whether the latents are used in any way."""
    return "bypassed" if set(one["expected"]) == {"bypassed"} else "used"


def _versions(lines: list[Record]) -> str:
    """The versions of the package that the records were made with."""
    return ", ".join(sorted({f"{one['version']} (code {one['code']})" for one in lines}))


def _words(section: str, **values: str) -> str:
    return (WORDS / f"{section}.md").read_text().format(**values)


def _said(one: Record) -> list[str]:
    """What was said of the vector and of the slot, and what should have been where it differs."""
    return [_held(said, truth) for said, truth in zip(one["fair"]["said"], one["expected"], strict=True)]


def _held(said: str, truth: str) -> str:
    """What was said, and what is true where it differs; bold where it is wrong."""
    shown = said if said in (truth, "undecided") else f"**{said}**"
    return shown if said == truth else f"{shown} (is {truth})"


def _found(erasure: Record) -> str:
    """What is read at the clean latents; bold where it lies above the majority rate."""
    read = erasure["read"]["clean"]
    return f"**{_ends(read)}**" if read[1] > erasure["majority"] else _ends(read)


def _ends(numbers: list[float] | None, sign: str = "") -> str:
    """A number with its interval."""
    if numbers is None:
        return "-"
    middle, low, high = numbers
    return f"{middle:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _table(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in ([*head], ["---"] * len(head), *lines))


if __name__ == "__main__":
    write()
