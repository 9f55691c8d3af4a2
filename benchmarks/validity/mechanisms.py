"""The instrument on models whose mechanism is known by construction: one record a model and set of items."""

from __future__ import annotations

import prismlens as pl
from prismlens.decodability import erasure_test
from prismlens.verdict import judge

EXPECTED = {
    "tiny/bottleneck": ("load-bearing", "load-bearing"),
    "tiny/slot": ("bypassed", "load-bearing"),
    "tiny/bypass": ("bypassed", "bypassed"),
}
"""Model -> what its construction says of the vector and of the slot."""
SEEDS = (11, 12, 13)
N = 200


def verdict(name: str, seed: int) -> dict[str, object]:
    """The verdict on one set of items, the conditions that it rests on, and the erasure of the answer's content."""
    model, items = pl.load(name, batch_size=100), pl.load_items("shapes", n=N, seed=seed)
    test = pl.corruption_test(model, items, seed=seed)
    frame, majority = test.frame(), test.majority.rate
    said = [judge(frame, part, majority, test.margin) for part in ("vector", "slot")]
    erased = erasure_test(model, items, folds=3, seed=seed, on_rare="drop")
    lines = erased.frame()
    return {
        "model": name, "items_seed": seed, "n": N, "revision": model.revision, "expected": list(EXPECTED[name]),
        "said": [one.word for one in said], "reasons": [one.reason for one in said], "majority": majority,
        "accuracy": {
            condition: [frame.loc[condition, column] for column in ("accuracy", "low", "high")]
            for condition in ("clean", "zero", "swap", "slot: keys and values deleted")
        },
        "same_output": {name: int(frame.loc[name, "same_output"]) for name in ("no-op", "zero", "noise 3 std")},
        "erasure": {
            "dropped": len(erased.dropped), "majority": erased.majority,
            **{
                what: {name: [lines.loc[name, what + end] for end in ("", "_low", "_high")] for name in lines.index}
                for what in ("read", "change")
            },
        },
    }  # fmt: skip
