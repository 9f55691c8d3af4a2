"""Tables and pictures of the reproduction, from the committed records alone; runs no model.

python benchmarks/reproduction/tables.py
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pictures import changes, scatter
from scipy import stats

HERE = Path(__file__).parent
RECORDS = HERE / "records"
PUBLISHED = ("lvr", "n-lvr", "d-lvr", "p-lvr-2", "p-lvr-3")
CONDITIONS = ("zero", "noise_0.1", "noise_0.3", "noise_1.0", "swap", "swap_answer", "slots_deleted")
RESAMPLES = 2000
PAPER = {
    "lvr": (0.555, 70.2, -2.6, 1.6, 36.6), "n-lvr": (0.556, 71.7, -2.6, -0.5, 24.1),
    "d-lvr": (0.464, 69.6, -1.1, 2.1, 31.9), "p-lvr-2": (0.777, 57.1, 0.0, 2.1, 14.6),
    "p-lvr-3": (0.769, 57.1, 2.1, 2.6, 14.1),
}  # fmt: skip
"""Published cosine (teacher-forced), V*Bench accuracy in %, change under zero and swap in points, gap in points."""


def load_models() -> pd.DataFrame:
    """One line a model: what it is, its accuracy, cosines, changes and gap, from its record and its rows."""
    lines = []
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        rows = pd.read_csv(path.with_name(path.stem + ".csv.gz"), keep_default_na=False)
        line = {key: record[key] for key in ("variant", "protocol", "seed", "lam", "steps")}
        line["accuracy"] = (rows.clean == rows.answer).mean()
        for name in CONDITIONS:
            if name in rows:
                used = rows[rows[name] != ""] if (rows[name] == "").any() else rows
                line[name] = ((used[name] == used.answer).astype(float) - (used.clean == used.answer)).mean()
                line[f"left out of {name}"] = len(rows) - len(used)
        for cell in record.get("cosine", []):
            # The published number is read at the block's target: the last stage.
            line[f"cosine {cell['mode']}"], line[f"floor {cell['mode']}"] = cell["cosine"], cell["cosine_other"]
        for cell in record.get("gap_answer", []):
            if cell["reading"] in ("paper", "best"):
                line[f"gap ({cell['reading']})"] = cell["gap"]
        line["missing"] = "; ".join(f"{k}: {v}" for k, v in record.get("missing", {}).items())
        lines.append(line)
    return pd.DataFrame(lines)


def over_seeds(values: Sequence[float], rng: np.random.Generator) -> str:
    """Mean and 95 % bootstrap interval over seeds; the mean alone where there is one seed."""
    own = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    if not len(own):
        return "–"
    if len(own) == 1:
        return f"{own[0]:+.3f} (1 seed)"
    means = own[rng.integers(len(own), size=(RESAMPLES, len(own)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{own.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided exact permutation p of Pearson's r: over all orders of a few variants."""
    observed = abs(np.corrcoef(x, y)[0, 1])
    every = [abs(np.corrcoef(x, y[list(order)])[0, 1]) for order in itertools.permutations(range(len(y)))]
    return float(np.mean(np.array(every) >= observed - 1e-12))


def correlations(models: pd.DataFrame, protocol: str, rng: np.random.Generator) -> list[str]:
    """Lines: how cosine and gap go with accuracy and corruption over the five variants, as the paper reads them.

    Means over seeds are correlated; the interval resamples seeds within every variant; the cluster check sets r beside
    that of a variable that only says whether a variant has several stages.
    """
    chosen = models[(models.protocol == protocol) & models.variant.isin(PUBLISHED)]
    lines = []
    for left, right in (
        ("cosine teacher-forced", "accuracy"), ("cosine free", "accuracy"), ("gap (paper)", "zero"),
        ("gap (paper)", "noise_0.1"), ("gap (paper)", "accuracy"),
    ):  # fmt: skip
        pair = chosen[["variant", left, right]].dropna() if left in chosen else chosen[:0]
        means = pair.groupby("variant", sort=False)[[left, right]].mean() if len(pair) else pair
        if len(means) < 3:
            lines.append(f"| {left} ~ {right} | fewer than three variants | | | | |")
            continue
        x, y = means[left].to_numpy(), means[right].to_numpy()
        drawn = []
        for _ in range(RESAMPLES):
            again = pair.groupby("variant", sort=False)[[left, right]].sample(
                frac=1, replace=True, random_state=rng.integers(2**31)
            )
            both = again.groupby(pair.variant, sort=False).mean()
            drawn.append(np.corrcoef(both[left], both[right])[0, 1])
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        staged = np.array([float(name.startswith("p-")) for name in means.index])
        apart = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(len(x))]
        lines.append(
            f"| {left} ~ {right} | {np.corrcoef(x, y)[0, 1]:+.2f} [{low:+.2f}, {high:+.2f}] | {exact_p(x, y):.3f} "
            f"| {stats.spearmanr(x, y).statistic:+.2f} | {min(apart):+.2f} to {max(apart):+.2f} "
            f"| {np.corrcoef(staged, y)[0, 1]:+.2f} |"
        )
    return lines


def table(models: pd.DataFrame, protocol: str, rng: np.random.Generator) -> list[str]:
    """The lines of one protocol's table, a variant each."""
    chosen = models[models.protocol == protocol]
    columns = (
        "accuracy",
        "cosine teacher-forced",
        "cosine free",
        "floor free",
        *CONDITIONS,
        "gap (paper)",
        "gap (best)",
    )
    lines = [f"| variant | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for variant, rows in chosen.groupby("variant", sort=False):
        cells = [over_seeds(rows[c], rng) if c in rows else "–" for c in columns]
        lines.append(f"| {variant} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Write README.md beside this file."""
    models = load_models()
    rng = np.random.default_rng(0)
    text = (HERE / "preface.md").read_text().rstrip().split("\n")
    for protocol in models.protocol.unique():
        text += ["", f"## protocol = {protocol}", "", *table(models, protocol, rng), ""]
        text += [
            "| over the five variants | Pearson r [95 %, seeds] | exact p | Spearman | leave one out | r, stages |",
            "|---|---|---|---|---|---|",
        ]
        text += correlations(models, protocol, rng)
        text += ["", f"![Changes under corruption](changes-{protocol}.png)"]
        changes(models, protocol, CONDITIONS, HERE / f"changes-{protocol}.png")
    protocols = list(models.protocol.unique())
    scatter(models, protocols, "cosine teacher-forced", "accuracy", HERE / "cosine-accuracy.png")
    scatter(models, protocols, "gap (paper)", "zero", HERE / "gap-reliance.png")
    text += ["", "## Cosine and accuracy, gap and reliance", "", "Small marks are models, large ones variants."]
    text += [
        "",
        "![Cosine against accuracy](cosine-accuracy.png)",
        "",
        "![Gap against the change under zero](gap-reliance.png)",
    ]
    missing = models[models.missing != ""]
    text += ["", "## Missing numbers", ""]
    text += [f"- {one.variant}, {one.protocol}, seed {one.seed}: {one.missing}" for one in missing.itertuples()] or [
        "None."
    ]
    (HERE / "README.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
