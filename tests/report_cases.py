"""One small report that several files of tests look at; made once a session."""

from dataclasses import replace
from functools import cache

import prismlens as pl
from prismlens.report import Report
from prismlens.trace import PrismModel

N, SEED = 32, 2
UNBOXED = (3, 8)


@cache
def small_model() -> PrismModel:
    return pl.load("tiny/bottleneck")


@cache
def small_items() -> tuple[pl.Item, ...]:
    """Two without boxes; the others with all that a report needs."""
    scenes = pl.load_items("shapes", n=N, seed=5)
    return tuple(replace(item, boxes=()) if n in UNBOXED else item for n, item in enumerate(scenes))


@cache
def small_report() -> Report:
    return pl.prism(small_model(), small_items(), seed=SEED, layers=[])
