"""Mixtures by construction: a share of the items goes to one model and the rest to another; mixes rows, runs no model.

Rows of one item are all of one model, donors included, as if a router stood before the two. Probes cannot be mixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import records

NEEDING, FREE = "bottleneck", "bypass"
SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""0 and 1 are the two models themselves."""


def routed(seed: int, share: float) -> tuple[dict[str, Any], pd.DataFrame]:
    """The record of a mixture and its rows, from those of the two models on the same items."""
    names = {kind: f"mechanism-{kind}-{seed}" for kind in (NEEDING, FREE)}
    rows = {kind: records.rows(name) for kind, name in names.items()}
    about = records.read("mechanism")[names[NEEDING]]
    order = np.random.default_rng([seed, round(100 * share)]).permutation(about["n"])
    needing = set(order[: round(share * about["n"])].tolist())
    mixed = pd.concat(
        [of[of.item.isin(needing) == (kind == NEEDING)] for kind, of in rows.items()], ignore_index=True
    ).sort_values(["condition", "item"], kind="stable", ignore_index=True)  # fmt: skip
    kept = {key: about[key] for key in ("items_seed", "n", "conditions", "left_out", "margin", "seed")}
    return {
        "model": "routed", **kept, "expected": ["partly", "partly"], "share": len(needing) / about["n"],
        "paper_probe": None, "erasure": None,
    }, mixed  # fmt: skip
