"""Trains and measures every model of the reproduction, in processes of one thread; what is recorded already is kept.

python benchmarks/reproduction/run.py --work DIR [--protocols fair paper] [--seeds 0 1 2 3 4] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

RECORDS = Path(__file__).parent / "records"
PUBLISHED = ("lvr", "n-lvr", "d-lvr", "p-lvr-2", "p-lvr-3")
CONTROLS = ("sft", "ce-only", "cosine", "random-target", "unrolled")
CONTROL_SEEDS = 1
"""The controls are a question beside the published one; one seed shows whether they differ in kind."""


@dataclass(frozen=True)
class One:
    """One model: what it is, and how long it is trained."""

    variant: str
    protocol: str
    seed: int
    lam: float
    steps: int

    @property
    def name(self) -> str:
        """A file name that says all of it."""
        return f"{self.variant}-{self.protocol}-lam{self.lam:g}-seed{self.seed}"


def runs(protocols: list[str], seeds: list[int], lam: float, steps: int) -> Iterator[One]:
    """Seed by seed, so that what is there when time runs out is balanced; controls for some seeds of one protocol."""
    for seed in seeds:
        for protocol in protocols:
            controlled = protocol == "fair" and seed in seeds[:CONTROL_SEEDS]
            names = (*PUBLISHED, *CONTROLS) if controlled else PUBLISHED
            yield from (One(name, protocol, seed, lam, steps) for name in names)


def one_process(one: One, work: Path) -> str:
    """Train and measure in a process of its own; the end of its output where it failed, else nothing."""
    command = [sys.executable, __file__, "--work", str(work), "--one", json.dumps(asdict(one))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return "" if done.returncode == 0 else f"{one.name}: {done.stderr.strip()[-1200:]}"


def train_and_measure(one: One, work: Path) -> None:
    """The model of one run, measured; its weights are not kept longer than that."""
    import shutil

    from measure import measure

    from prismlens.training.zoo import Recipe, build

    folder = work / one.name
    recipe = Recipe(folder, one.seed, one.protocol, one.lam, one.steps, parents="tiny/")
    if not (folder / one.variant / "training.json").exists():
        build(one.variant, recipe)
    manifest = json.loads((folder / one.variant / "training.json").read_text())
    measure(folder / one.variant, RECORDS / one.name, {
        **asdict(one), "final_losses": manifest["final_losses"], "base": manifest["base"],
        "environment": manifest["environment"],
    })  # fmt: skip
    shutil.rmtree(folder)


def main() -> None:
    """All runs that have no record yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models while they are made")
    parser.add_argument("--protocols", nargs="+", default=["fair", "paper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--lam", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        train_and_measure(One(**json.loads(given.one)), given.work)
        return
    waiting = [
        one
        for one in runs(given.protocols, given.seeds, given.lam, given.steps)
        if not (RECORDS / f"{one.name}.json").exists()
    ]
    print(f"{len(waiting)} models to make")
    with ThreadPoolExecutor(given.processes) as pool:
        failed = [line for line in pool.map(lambda one: one_process(one, given.work), waiting) if line]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
