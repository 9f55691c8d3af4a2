"""Makes every record of the validity table that is missing, in name order of cost; killed, it goes on where it was.

python benchmarks/validity/run.py [--fresh] [name ...]
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mechanisms
import pandas as pd
import readings
import records
import simulations
import table
from known import KNOWN, ROUTED, Known
from routed import routed

import prismlens

PACKAGE = Path(prismlens.__file__).parent
MEASURING = ("corruption", "verdict", "stats", "probes", "decodability", "interventions", "experiment")
"""The parts of the package whose change can change a record; the code digest is taken over these."""


def digest() -> str:
    """Of the measuring code, named in every record; a record made by other code says so on the page."""
    files = [path for name in MEASURING for path in (*PACKAGE.glob(f"{name}.py"), *(PACKAGE / name).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def jobs() -> dict[str, Callable[[], tuple[dict[str, Any], pd.DataFrame | None]]]:
    """Name of the record -> what makes it, with its rows where it has any; the quick ones first."""
    simulated = {
        f"simulation-{name}": (lambda name=name: (simulations.count(name), None)) for name in simulations.SIMULATIONS
    }
    models = {name: partial(measured, one) for name, one in KNOWN.items()}
    return simulated | models | {name: partial(mixed, seed, share) for name, (seed, share) in ROUTED.items()}


def mixed(seed: int, share: float) -> tuple[dict[str, Any], None]:
    """A routed mixture's record; its rows are those of the two models."""
    return with_readings(*routed(seed, share)), None


def measured(known: Known) -> tuple[dict[str, Any], pd.DataFrame]:
    """A model's record, with what its rows say, and the rows."""
    record, rows = mechanisms.measure(known)
    return with_readings(record, rows), rows


def with_readings(record: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """The record with what its rows say under either protocol."""
    return record | {"fair": readings.fair(record, rows), "paper": readings.published(record, rows)}


def main() -> None:
    """Run what is missing, or with --fresh all that is named, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of record names; all where none is given")
    parser.add_argument("--fresh", action="store_true", help="make records again that are there")
    asked = parser.parse_args()
    chosen = {name: make for name, make in jobs().items() if name.startswith(tuple(asked.names) or "")}
    if not chosen:
        parser.error(f"no record begins with {' or '.join(asked.names)}; there are {', '.join(jobs())}")
    start, stamp = time.perf_counter(), {"version": prismlens.__version__, "code": digest()}
    for name, make in chosen.items():
        if records.present(name) and not asked.fresh:
            continue
        begun = time.process_time()
        record, rows = make()
        records.write(name, record | stamp | {"cpu_seconds": round(time.process_time() - begun, 1)}, rows)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    table.write()


if __name__ == "__main__":
    main()
