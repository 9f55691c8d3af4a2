"""Times a probe map against scikit-learn's LogisticRegression, cell by cell over all features; knows no model.

    python benchmarks/probes.py --json benchmarks/records/probes.json

The features are made up: `n` items whose columns have the falling spectrum of hidden states, with the labels along one
direction that grows with depth. scikit-learn runs on some cells only, and its time for the map is that times the share
of cells; both its default tolerance and the one at which its optimum is reached are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prismlens.probes import Cell, Protocol, evaluate, out_of_fold

LABELS = {"A": 71, "B": 70, "C": 27, "D": 23}
"""Answers of V*Bench."""
TIMED = Protocol("timed", (1.0,), grouped=False)


def made_up(cells: int, d: int, seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Features of every cell, ``[191, d]`` float32, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(list(LABELS), list(LABELS.values())))
    codes = np.searchsorted(sorted(LABELS), labels)
    n, features = len(labels), {}
    for cell in range(cells):
        strength = np.geomspace(10, 0.1, n)
        latent = rng.normal(size=(n, n))
        latent[:, 10] += codes * 2 * cell / cells
        features[f"cell {cell}"] = ((latent * strength) @ rng.normal(size=(n, d)) + 5 * rng.normal(size=d)).astype(
            np.float32
        )
    return features, labels.tolist()


def baseline(features: dict[str, np.ndarray], cells: dict[str, Cell], tol: float) -> dict[str, Any]:
    """scikit-learn on some cells: seconds, and how far its held-out answers are from ours."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=10_000, tol=tol))
    start, spent = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted in the differences below
        theirs = {
            name: out_of_fold(classifier, x.astype(np.float64), cells[name].codes, cells[name].folds)
            for name, x in features.items()
        }
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    ours = {name: cells[name] for name in features}
    return {
        "tol": tol,
        "cells": len(features),
        "seconds": seconds,
        "processor seconds": spent,
        "largest probability difference": max(
            float(np.abs(np.exp(ours[name].logprobs) - np.exp(theirs[name].logprobs)).max()) for name in features
        ),
        "different predictions": int(sum((ours[name].predicted != theirs[name].predicted).sum() for name in features)),
        "predictions": sum(len(one.codes) for one in ours.values()),
    }


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--positions", type=int, default=10)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--baseline-cells", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=None, help="threads of the map; all processors by default")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    total = asked.layers * asked.positions
    features, labels = made_up(total, asked.d, seed=0)
    start, spent = time.perf_counter(), time.process_time()
    cells = evaluate(
        features, labels, range(len(labels)), protocol=TIMED, n_permutations=0, n_controls=0, jobs=asked.jobs
    )
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    some = {name: features[name] for name in list(features)[:: max(1, total // asked.baseline_cells)]}
    lines = [baseline(some, cells, tol) for tol in (1e-4, 1e-9)]
    for line in lines:
        line["map seconds, extrapolated"] = line["seconds"] * total / line["cells"]
        line["times the processor seconds"] = line["processor seconds"] * total / line["cells"] / spent
        line["times slower"] = line["map seconds, extrapolated"] / seconds
    result = {
        "map": {"cells": total, "n": len(labels), "d": asked.d, "folds": TIMED.folds, "C": 1.0, "seconds": seconds,
            "processor seconds": spent},
        "baseline": lines,
        "machine": {
            "processors": os.cpu_count(), "system": platform.platform(), "jobs": asked.jobs or os.cpu_count(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"), "sklearn": sklearn.__version__,
            "numpy": np.__version__,
        },
    }  # fmt: skip
    asked.json.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"map: {total} cells x {TIMED.folds} folds, n = {len(labels)}, d = {asked.d}: {seconds:.1f} s, "
        f"{spent:.1f} of processors"
    )
    for line in lines:
        print("scikit-learn, " + ", ".join(f"{name} {value:.6g}" for name, value in line.items()))


if __name__ == "__main__":
    main()
