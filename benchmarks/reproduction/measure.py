"""What is recorded of a trained model: its choices under every condition, cosines and the gap; trains nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd

import prismlens as pl
from prismlens.alignment import FORCED, FREE
from prismlens.decodability import decodability
from prismlens.errors import DonorError, PrismlensError
from prismlens.training.protocol import PROTOCOLS

N, SEED = 500, 2
"""Held-out items, and the seed that renders them: neither training nor the shipped models' accuracy has seen them."""
CONDITIONS = {
    "zero": (pl.Edit(pl.Zero()),),
    **{f"noise_{sigma}": (pl.Edit(pl.Noise(sigma, unit="raw")),) for sigma in (0.1, 0.3, 1.0)},
    "swap": (pl.Edit(pl.Swap()),),
    "swap_answer": (pl.Edit(pl.Swap(donor="answer-in-options")),),
    "slots_deleted": (pl.Edit(pl.DeleteKV()),),
}
"""The paper's conditions, then two that it lacks: a donor with another answer, and the slots gone."""


def measure(folder: Path, out: Path, labels: dict[str, Any]) -> Path:
    """Measure one model and write ``<out>.csv.gz`` (a row an item) and ``<out>.json`` (what does not fit a row).

    Args:
        folder: of the model.
        out: path without suffix; both files are there, or neither.
        labels: variant, seed, protocol and the like, copied into the record.
    """
    model = pl.load(folder, batch_size=100)
    items = pl.load_items("shapes", n=N, seed=SEED)
    latents = model.hf.config.latent_entry != "none"
    record: dict[str, Any] = {**labels, "n": N, "items_seed": SEED, "revision": model.revision}
    rows = _choices(model, items, record) if latents else _clean(model, items)
    if latents:
        for part in (_cosines, _gap):
            try:
                part(model, items, rows, record)
            except PrismlensError as error:  # a reader has to see what is missing, and why
                record.setdefault("missing", {})[part.__name__.strip("_")] = str(error).splitlines()[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_suffix(".draft")
    with gzip.GzipFile(draft, "wb", mtime=0) as file:
        file.write(rows.to_csv(index=False, float_format="%.5g").encode())
    draft.rename(out.with_suffix(".csv.gz"))
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return out.with_suffix(".json")


def _clean(model: pl.PrismModel, items: Any) -> pd.DataFrame:
    run = model.generate(items)
    return pd.DataFrame({
        "item": [item.id for item in items], "group": [item.group for item in items],
        "category": [item.category for item in items], "answer": [item.answer for item in items],
        "clean": list(run.choice), "latents": run.steps_taken.tolist(),
    })  # fmt: skip


def _choices(model: pl.PrismModel, items: Any, record: dict[str, Any]) -> pd.DataFrame:
    """One column a condition with the letter chosen; empty where a condition could not be applied to an item.

    A model that decides itself how many latents it has may need more than its donor has: the swaps are then missing.
    """
    try:
        found = pl.run_conditions(model, items, CONDITIONS, on_missing="drop").rows
    except DonorError as error:
        record["missing"] = {"swaps": str(error).splitlines()[0]}
        others = {name: edits for name, edits in CONDITIONS.items() if not isinstance(edits[0].op, pl.Swap)}
        found = pl.run_conditions(model, items, others, on_missing="drop").rows
    wide = found.pivot(index="item", columns="condition", values="choice")
    rows = _clean(model, items).set_index("item")
    for name in wide.columns.intersection(list(CONDITIONS)):
        rows[name] = wide[name]
    if "swap_answer" in rows:
        rows["swap_outcome"] = found[found.condition == "swap_answer"].set_index("item").outcome
    return rows.reset_index()


def _cosines(model: pl.PrismModel, items: Any, rows: pd.DataFrame, record: dict[str, Any]) -> None:
    """Mean cosines by mode and stage, with the floor and intervals."""
    split = {"held-out": "test", "training": "train"}[PROTOCOLS[record["protocol"]].alignment_items]
    read = items if split == "test" else pl.load_items("shapes", n=N, seed=SEED, split=split)
    near = pl.alignment(model, read, on_missing="drop").frame(by_stage=True).reset_index()
    record["cosine"] = json.loads(near.to_json(orient="records"))
    assert {FREE, FORCED} <= set(near["mode"])


def _gap(model: pl.PrismModel, items: Any, rows: pd.DataFrame, record: dict[str, Any]) -> None:
    """The decodability gap of the letter and of the content, at the paper's place and at the best latent."""
    for target in ("answer", "content"):
        probes = decodability(
            model, items, target=target, layers=[], n_permutations=0, n_controls=0, on_missing="drop", on_rare="drop"
        )
        record[f"gap_{target}"] = json.loads(probes.gap().to_json(orient="records"))
