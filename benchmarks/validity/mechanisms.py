"""What is measured on a model of known mechanism: rows of the corruption test under both protocols, probes, erasure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from known import Known

import prismlens as pl
from prismlens.corruption import default_conditions
from prismlens.decodability import erasure_test
from prismlens.interventions.paper import paper_conditions
from prismlens.positions import Role, answer, latent

PAPER = "paper: "
"""Begins the names of the published conditions, which share one run with the default ones."""
COLUMNS = (
    "item", "group", "needs", "answer", "condition", "choice", "content_chosen", "correct", "same_output", "donor",
    "donor_content", "outcome",
)  # fmt: skip
"""What is kept of a row: what the statistics of `CorruptionTest` need, and whether the item needs the vectors."""
ROLES: Sequence[Role] = (answer.source, *(latent[step] for step in range(4)))
"""Where the answer is probed: the state that produces it, and every latent."""


def measure(known: Known) -> tuple[dict[str, Any], pd.DataFrame]:
    """The record, and its per-item rows."""
    model, items, seed = known.load(), known.items(), known.items_seed
    needs = [known.share == 1.0] * len(items) if known.needs is None else list(known.needs(model, items))
    published = {PAPER + name: edits for name, edits in paper_conditions(seed).items()}
    # A model that is itself an edited one runs free, and modes do not mix.
    conditions = {
        name: edits for name, edits in {**default_conditions(seed), **published}.items()
        if not model.active_edits or edits[0].mode == "free"
    }  # fmt: skip
    test = pl.corruption_test(model, items, conditions=conditions, seed=seed)
    manifest = test.results.manifest
    record = {
        "model": known.model, "items_seed": seed, "n": len(items), "revision": model.revision,
        "expected": list(known.expected), "share": sum(needs) / len(needs),
        "conditions": {name: list(edits) for name, edits in manifest["conditions"].items()},
        "left_out": manifest["left_out"], "margin": test.margin, "seed": seed,
        "paper_probe": _paper_probe(model, items, seed),
        "erasure": _erasure(model, items, seed) if known.needs is None else None,
    }  # fmt: skip
    return record, numbered(test.results.rows, dict(zip((item.id for item in items), needs, strict=True)))


def numbered(rows: pd.DataFrame, needs: dict[str, bool]) -> pd.DataFrame:
    """The columns that are kept; items (and donors) are numbered as they were rendered, groups as they first appear."""
    number = {item: place for place, item in enumerate(needs)}
    flags = {name: rows[name].astype(int) for name in ("correct", "same_output")}
    return rows.assign(
        needs=rows.item.map(needs).astype(int), item=rows.item.map(number), group=pd.factorize(rows.group)[0],
        donor=rows.donor.map(number).astype("Int64"), **flags,
    ).loc[:, list(COLUMNS)]  # fmt: skip


def _paper_probe(model: pl.PrismModel, items: Sequence[pl.Item], seed: int) -> dict[str, float]:
    """Accuracy of the published probe for the letter at the answer's source (a) and at the last latent (b)."""
    found = pl.decodability(
        model, items, layers=[], roles=ROLES, protocol="paper", n_permutations=1, n_controls=1, seed=seed, jobs=1
    )
    line = found.gap(n_resamples=200).set_index("reading").loc["paper"]
    return {end: float(line[end]) for end in ("a", "b")}


def _erasure(model: pl.PrismModel, items: Sequence[pl.Item], seed: int) -> dict[str, Any]:
    """What is read at the latents, and what accuracy changes by, when the answer's content is erased there."""
    erased = erasure_test(model, items, folds=3, seed=seed, on_rare="drop")
    lines = erased.frame()
    return {
        "dropped": len(erased.dropped), "majority": erased.majority,
        **{
            what: {name: [float(lines.loc[name, what + end]) for end in ("", "_low", "_high")] for name in lines.index}
            for what in ("read", "change")
        },
    }  # fmt: skip
