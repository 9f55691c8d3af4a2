"""Cost of a sweep, as ratios measured in one run: one condition at a time, each with its own prompts, to a sweep.

    python benchmarks/sweep.py --model tiny/lvr --items 100 --out sweep.json

The baseline is the loop that a sweep is without any sharing: a clean run, then for every condition `generate` on all
items, in batches of `model.batch_size`, with donors and spreads taken from the clean run. The two sides take turns, so
that a busy machine slows both; every figure is a median over rounds of processor seconds on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from prismlens.corruption import default_conditions
from prismlens.data.load import load_items
from prismlens.experiment import run_conditions
from prismlens.interventions import Edit
from prismlens.results import environment_manifest
from prismlens.trace import PrismModel, load
from prismlens.types import Item


def one_at_a_time(model: PrismModel, items: Sequence[Item], conditions: Mapping[str, Sequence[Edit]]) -> None:
    """The baseline."""
    clean = model.generate(items)
    for edits in conditions.values():
        model.edited(*edits).generate(items, reference=clean)


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny/lvr")
    parser.add_argument("--items", type=int, nargs="+", default=[40, 100])
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="other numbers of rows to time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", "--out", dest="out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, conditions, results = load(given.model), default_conditions(0), []
    for n in given.items:
        items = load_items("shapes", n=n)
        sides = {"baseline": [], **{str(rows): [] for rows in (None, *given.rows)}}
        plans = {}
        for _ in range(given.rounds):
            began = time.process_time()
            one_at_a_time(model, items, conditions)
            sides["baseline"].append(time.process_time() - began)
            for rows in (None, *given.rows):
                began = time.process_time()
                found = run_conditions(model, items, conditions, batch_rows=rows)
                sides[str(rows)].append(time.process_time() - began)
                plans[str(rows)] = found.manifest["plan"]
        base = statistics.median(sides.pop("baseline"))
        for rows, spent in sides.items():
            own = statistics.median(spent)
            line = {"items": n, "baseline_s": base, "sweep_s": own, "ratio": base / own, "plan": plans[rows]}
            results.append(line)
            print(f"{n} items: {base:.2f} s -> {own:.2f} s, ratio {base / own:.2f}, plan {plans[rows]}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps({"results": results, "environment": environment_manifest()}, indent=1))


if __name__ == "__main__":
    main()
