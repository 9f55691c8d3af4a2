"""A sweep small enough to be killed many times, as a function and as a program; also kills itself on request.

python -m tests.sweep_cases run FOLDER        the whole sweep into FOLDER/sweep
python -m tests.sweep_cases kill FOLDER N     N times killed and begun again, until it is through
"""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from prismlens.data.shapes import shapes
from prismlens.experiment import run_conditions
from prismlens.interventions import DeleteKV, Edit, Identity, Noise, Swap, Zero
from prismlens.positions import image
from prismlens.results import Results
from prismlens.trace import PrismModel
from tests.plain_hooks import twins

SCENES = shapes(10, seed=3)
ITEMS = [replace(SCENES[0], boxes=()), *SCENES[1:]]
"""The first lacks the positions of one condition."""
BOX = {"positions": image.box, "site": "blocks.0.hook_resid_pre"}
CONDITIONS = {
    "no-op": [Edit(Identity())],
    "no-op, held": [Edit(Identity(), mode="held")],
    "box": [Edit(Zero(), **BOX)],
    "noise": [Edit(Noise(2.0, unit="std"))],
    "noise, held": [Edit(Noise(2.0, unit="std"), mode="held")],
    "deleted": [Edit(DeleteKV())],
    "swap": [Edit(Swap(), site="kv")],
}
SEEDS = (0, 5)


def model() -> PrismModel:
    """The untrained model, the same in every process."""
    return twins().traced


def sweep(out: Path | None, using: PrismModel | None = None, **changed) -> Results:
    """The sweep in units of three items, two conditions a batch."""
    using = using or model()
    using.batch_size = 3
    arguments = {"on_missing": "drop", "seeds": SEEDS, "batch_rows": 6, "out": out, **changed}
    return run_conditions(using, arguments.pop("items", ITEMS), arguments.pop("conditions", CONDITIONS), **arguments)


def killed(folder: Path, kills: int) -> None:
    """Run the sweep in children that are killed at random moments; where one gets through first, begin another."""
    using, chance, number = model(), random.Random(0), 0
    began = time.perf_counter()
    sweep(folder / "timed", using)
    whole = time.perf_counter() - began
    while True:
        out = folder / f"killed-{number}"
        child = os.fork()
        if not child:
            sweep(out, using)
            os._exit(0)
        if kills:
            time.sleep(chance.uniform(0, whole / 4))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        through = status == 0
        assert through or os.WIFSIGNALED(status), "the sweep failed"
        kills -= not through
        parts = len(list((out / "parts").glob("[0-9]*"))) if (out / "parts").exists() else 0
        print(number, "through" if through else "killed", parts, flush=True)
        number += through
        if through and kills <= 0:
            return


if __name__ == "__main__":
    what, folder, *more = sys.argv[1:]
    if what == "run":
        sweep(Path(folder) / "sweep")
    else:
        killed(Path(folder), int(more[0]))
