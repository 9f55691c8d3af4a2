"""Makes every record of the validity table that is missing or was made by other code; killed, it goes on where it was.

python benchmarks/validity/run.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import mechanisms
import simulations
import table

HERE = Path(__file__).parent
SOURCES = sorted([*(HERE.parents[1] / "prismlens").rglob("*.py"), HERE / "mechanisms.py", HERE / "simulations.py"])


def digest() -> str:
    """Of all code that the records depend on."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]


def jobs() -> dict[str, Callable[[], dict[str, object]]]:
    """Name of the record -> what makes it; the quick ones first."""
    made: dict[str, Callable[[], dict[str, object]]] = {
        f"simulation-{name}": (lambda name=name: simulations.count(name)) for name in simulations.SIMULATIONS
    }
    for seed in mechanisms.SEEDS:
        for model in mechanisms.EXPECTED:
            name = f"mechanism-{model.removeprefix('tiny/')}-{seed}"
            made[name] = lambda model=model, seed=seed: mechanisms.verdict(model, seed)
    return made


def main() -> None:
    """Run what is to be run, then write the table."""
    code, start = digest(), time.perf_counter()
    table.RECORDS.mkdir(exist_ok=True)
    for name, make in jobs().items():
        path = table.RECORDS / f"{name}.json"
        if path.exists() and json.loads(path.read_text())["code"] == code:
            continue
        begun = time.process_time()
        record = make() | {"code": code, "cpu_seconds": round(time.process_time() - begun, 1)}
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(record, indent=1) + "\n")
        draft.rename(path)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    table.write()


if __name__ == "__main__":
    main()
