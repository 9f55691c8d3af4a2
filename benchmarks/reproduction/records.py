"""The committed records as one table of models and one of items; computes no statistic."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

RECORDS = Path(__file__).parent / "records"
PUBLISHED = ("lvr", "n-lvr", "d-lvr", "p-lvr-2", "p-lvr-3")
"""The paper's variants, in its order."""
CONDITIONS = ("zero", "noise_0.1", "noise_0.3", "noise_1.0", "swap", "swap_answer", "slots_deleted")
"""Columns of the rows: the choice under each condition; the last breaks the slots, the others the vectors."""


def load_models() -> pd.DataFrame:
    """One line a model: what it is, its cosines and its gap; ``missing`` says what could not be measured, and why."""
    lines = []
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        line = {"name": path.stem} | {key: record[key] for key in ("variant", "protocol", "seed", "lam", "steps")}
        for cell in record.get("cosine", []):
            # The published number is read at the block's target: the last stage.
            line[f"cosine {cell['mode']}"], line[f"floor {cell['mode']}"] = cell["cosine"], cell["cosine_other"]
        for cell in record.get("gap_answer", []):
            if cell["reading"] in ("paper", "best"):
                line |= {f"gap ({cell['reading']})": cell["gap"], f"latent ({cell['reading']})": cell["b"]}
                line["source"] = cell["a"]
        line["missing"] = "; ".join(f"{k}: {v}" for k, v in record.get("missing", {}).items())
        lines.append(line)
    order = [*PUBLISHED, *sorted({line["variant"] for line in lines} - set(PUBLISHED))]
    frame = pd.DataFrame(lines).sort_values(["protocol", "variant", "seed"], key=lambda own: own.map(
        {name: n for n, name in enumerate(order)} if own.name == "variant" else lambda value: value
    ))  # fmt: skip
    return frame.reset_index(drop=True)


def load_items() -> dict[str, pd.DataFrame]:
    """Model -> one line an item: ``group``, ``answer``, ``accuracy`` (1 where the clean choice is right), and the
    change of that under each condition (missing where it could not be applied to the item)."""
    out = {}
    for path in sorted(RECORDS.glob("*.csv.gz")):
        rows = pd.read_csv(path, keep_default_na=False, index_col="item")
        right = rows[["group", "answer"]].assign(accuracy=(rows.clean == rows.answer).astype(float))
        for name in CONDITIONS:
            if name in rows:
                after = (rows[name] == rows.answer).astype(float).where(rows[name] != "")
                right[name] = after - right.accuracy
        out[path.name.removesuffix(".csv.gz")] = right
    return out
