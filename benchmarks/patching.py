"""Times a patching sweep against one whole forward a cell, on a shipped model; knows no other model.

    python benchmarks/patching.py --json benchmarks/records/patching.json

The baseline does what a loop over cells does: for every cell one traced forward over the whole sequences of all pairs,
from the embeddings up (image features are computed once for both). Both are repeated and medians taken; the largest
difference of a patched metric shows that they compute the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import prismlens as pl
from prismlens.patching import PatchingSweep, patching_sweep
from prismlens.patching.metric import Measure
from prismlens.patching.places import places_of
from prismlens.patching.runs import paired_runs
from prismlens.patching.states import replay, step_inputs, write
from prismlens.positions import Role, latent
from prismlens.trace.forward import traced_step

SWEEPS: dict[str, Sequence[Role] | None] = {"every position": None, "latents": [latent[i] for i in range(4)]}


@torch.no_grad()
def one_forward_a_cell(model: pl.PrismModel, pairs: pl.Pairs, positions: Any) -> dict[tuple[int, str, str], float]:
    """(layer, place, pair) -> metric under the patch at resid_pre, the slow way."""
    runs = paired_runs(model.generate(pairs.clean), model.generate(pairs.corrupted), model.processor, "held")
    places, engine = places_of(runs, positions), model.engine
    measure = Measure("logit_diff", runs.decisions, runs.clean.items, runs.corrupted.items)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.hf.n_layers)]
    donor = replay(engine, runs.clean, runs.width, names)
    inputs, rows, out = step_inputs(engine, runs.corrupted, runs.width), range(len(runs.decisions)), {}
    for layer, name in enumerate(names):
        for label, mask in zip(places.labels, places.masks, strict=True):
            hidden = traced_step(
                engine.wrapper, inputs, [write(engine, name, mask, donor.values[name], None)], []
            ).output
            logits = model.hf.lm_head(hidden.hidden[torch.arange(len(rows)), runs.source])
            for pair, value in enumerate(measure(logits, rows).tolist()):
                if bool(mask[pair].any()):
                    out[layer, label, runs.clean.items[pair].id] = value
    return out


def swept(model: pl.PrismModel, pairs: pl.Pairs, positions: Any) -> PatchingSweep:
    """The same by `patching_sweep`."""
    return patching_sweep(model, pairs.clean, pairs.corrupted, "resid_pre", positions=positions)


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of every repeat, after one that is not counted."""
    run()
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        out.append(time.perf_counter() - start)
    return out


def compared(model: pl.PrismModel, pairs: pl.Pairs, name: str, repeats: int) -> dict[str, Any]:
    """Medians of both, their ratio, and the largest difference."""
    positions = SWEEPS[name]
    slow, fast = one_forward_a_cell(model, pairs, positions), swept(model, pairs, positions)
    ours = {(int(row.layer), row.pos, row.pair): row.patched for row in fast.rows.itertuples()}
    times = {
        "sweep": seconds(lambda: swept(model, pairs, positions), repeats),
        "one forward a cell": seconds(lambda: one_forward_a_cell(model, pairs, positions), repeats),
    }
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "positions": name, "pairs": len(pairs), "cells": fast.tensor.numel(), "seconds": times, "median": medians,
        "times faster": medians["one forward a cell"] / medians["sweep"],
        "largest difference": max(abs(slow[key] - value) for key, value in ours.items()),
    }  # fmt: skip


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny/lvr")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    model = pl.load(asked.model)
    lines = []
    for n in asked.pairs:
        for name in SWEEPS:
            line = compared(model, pl.load_pairs("shapes", n, 3), name, asked.repeats)
            lines.append(line)
            shown = ", ".join(f"{kind} {value:.2f} s" for kind, value in line["median"].items())
            print(f"{n} pairs, {name}, {line['cells']} cells: {shown}; {line['times faster']:.1f} times faster")
    machine = {
        "processors": os.cpu_count(), "system": platform.platform(), "torch": torch.__version__,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip
    asked.json.write_text(json.dumps({"model": asked.model, "lines": lines, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
