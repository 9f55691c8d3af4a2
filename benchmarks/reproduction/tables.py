"""Writes README.md and its pictures from the committed records alone; runs no model.

python benchmarks/reproduction/tables.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from claims import RULES, answer_is_not_in_latents, breaking_is_harmless, changes, cosine_misleads
from estimates import Correlation, correlate, over_items_and_seeds, over_seeds
from pictures import draw_changes, scatter
from records import CONDITIONS, PUBLISHED, load_items, load_models

HERE = Path(__file__).parent
SINGLE = (
    "cosine teacher-forced", "cosine free", "floor free", "gap (paper)", "gap (best)", "source", "latent (best)"
)  # fmt: skip
"""One number a model."""
PAIRS = {
    ("cosine teacher-forced", "accuracy"): "-0.94", ("cosine free", "accuracy"): "", ("gap (paper)", "zero"): "-0.77",
    ("gap (paper)", "noise_0.1"): "-0.93", ("gap (paper)", "accuracy"): "+0.86", ("source", "accuracy"): "+0.98",
}  # fmt: skip
"""What is correlated over the five variants -> the published Pearson r."""
STAGED = ("p-lvr-2", "p-lvr-3")
Items = Mapping[str, pd.DataFrame]


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def reading_tables(models: pd.DataFrame, items: Items) -> list[str]:
    """Accuracy and what is read off the states; then what breaking them does."""
    read, broken = [], []
    for variant, rows in models.groupby("variant", sort=False):
        frames = [items[name] for name in rows.name]
        accuracy = str(over_items_and_seeds(frames, "accuracy")).replace("+", "")
        read.append([str(variant), str(len(rows)), accuracy, *(over_seeds(rows[one]) for one in SINGLE)])
        broken.append([str(variant), *(str(over_items_and_seeds(frames, one)) for one in CONDITIONS)])
    return [
        *markdown(["variant", "seeds", "accuracy", *SINGLE], read), "",
        "Change of accuracy under each condition:", "", *markdown(["variant", *CONDITIONS], broken),
    ]  # fmt: skip


def correlations(models: pd.DataFrame) -> dict[tuple[str, str], Correlation | None]:
    """Each of `PAIRS` over the five variants."""
    five = models[models.variant.isin(PUBLISHED)]
    return {
        pair: correlate(
            {str(variant): rows[list(pair)].dropna().to_numpy() for variant, rows in five.groupby("variant", sort=False)
             if rows[list(pair)].notna().all(axis=1).any()},
            STAGED,
        )
        for pair in PAIRS
    }  # fmt: skip


def correlation_table(found: Mapping[tuple[str, str], Correlation | None]) -> list[str]:
    """One line a pair, beside the published number."""
    lines = []
    for (left, right), one in found.items():
        cells = ["fewer than three variants", "", "", "", ""] if one is None else [
            f"{one.pearson:+.2f} [{one.low:+.2f}, {one.high:+.2f}]", f"{one.p:.3f}", f"{one.spearman:+.2f}",
            f"{one.apart[0]:+.2f} to {one.apart[1]:+.2f}", f"{one.cluster:+.2f}",
        ]  # fmt: skip
        lines.append([f"{left} ~ {right}", PAIRS[left, right], *cells])
    head = ["over the variants", "published r", "r [95 %, seeds]", "exact p", "Spearman", "leave one out", "r, stages"]
    return markdown(head, lines)


def claims_table(models: pd.DataFrame, items: Items) -> list[str]:
    """The three claims, protocol by protocol."""
    lines = []
    for protocol, own in models.groupby("protocol", sort=False):
        five = own[own.variant.isin(PUBLISHED)]
        found = correlations(own)["cosine teacher-forced", "accuracy"]
        seeds = int(five.groupby("variant").size().min())
        lines += [
            ["(1) a higher cosine goes with lower accuracy", str(protocol), cosine_misleads(found, seeds)],
            ["(2) breaking the vectors hardly moves accuracy", str(protocol),
             breaking_is_harmless(changes(list(five.name), items))],
            ["(3) the answer is read where it is written, not in the latents", str(protocol),
             answer_is_not_in_latents(five)],
        ]  # fmt: skip
    return markdown(["claim", "protocol", "here"], lines)


def main() -> None:
    """Write README.md and the pictures beside this file."""
    items, models = load_items(), load_models()
    models["accuracy"] = [items[name].accuracy.mean() for name in models.name]
    for one in CONDITIONS:
        models[one] = [items[name][one].mean() if one in items[name] else np.nan for name in models.name]
    text = [(HERE / "preface.md").read_text().rstrip(), "", "## The three claims", "", RULES.rstrip(), ""]
    text += [*claims_table(models, items), "", (HERE / "came_out.md").read_text().rstrip()]
    for protocol, own in models.groupby("protocol", sort=False):
        text += ["", f"## protocol = {protocol}", "", *reading_tables(own, items), ""]
        text += [*correlation_table(correlations(own)), "", f"![Changes under corruption](changes-{protocol}.png)"]
        draw_changes(own, CONDITIONS, HERE / f"changes-{protocol}.png")
    protocols = list(models.protocol.unique())
    scatter(models, protocols, "cosine teacher-forced", "accuracy", HERE / "cosine-accuracy.png")
    scatter(models, protocols, "gap (paper)", "zero", HERE / "gap-reliance.png")
    text += ["", "## Cosine and accuracy, gap and reliance", "", "Small marks are models, large ones variants."]
    text += ["", "![Cosine against accuracy](cosine-accuracy.png)"]
    text += ["", "![Gap against the change under zero](gap-reliance.png)", "", "## Missing numbers", ""]
    missing = models[models.missing != ""]
    text += [f"- {one.variant}, {one.protocol}, seed {one.seed}: {one.missing}" for one in missing.itertuples()]
    text += [] if len(missing) else ["None."]
    (HERE / "README.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
