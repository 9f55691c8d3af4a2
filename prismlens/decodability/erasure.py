"""The causal counterpart of a probe: erase what it could read at a site, and see whether behaviour moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import prismlens.stats as stats
from prismlens.errors import RoleError
from prismlens.interventions import Edit
from prismlens.interventions.erase import Erase
from prismlens.markup import block, interval_table, title
from prismlens.positions import Role, latent
from prismlens.probes import Eraser, ErasureFitter, LogisticProbe
from prismlens.probes.folds import stratified_folds
from prismlens.probes.inputs import coded, group_codes
from prismlens.probes.relabel import shuffled_labels
from prismlens.probes.targets import item_column, without_rare
from prismlens.sites import LATENT
from prismlens.trace import PrismModel, Run
from prismlens.types import Item

CLEAN, ERASED, CONTROL = "clean", "erased", "control"
STRENGTH = 0.01
"""C of the probe that is asked before and after."""
SHOWN = {
    "condition": "", "accuracy": ".3f", "change": "+.3f", "p": ".4f", "over_control": "+.3f", "p_over_control": ".4f",
    "read": ".3f",
}  # fmt: skip
"""The columns that a notebook shows, and how."""


@dataclass(frozen=True, eq=False)
class ErasureTest:
    """Rows of an erasure test, and the statistics computed from them.

    Args:
        rows: one an item and condition: ``item, group, condition`` (``clean``; ``erased``; ``control``: the same number
            of dimensions, fitted on shuffled labels), ``choice, correct``, ``read`` (share of the positions at which a
            probe fitted on the other folds' clean vectors still reads the label).
        rank: dimensions erased at each position, mean over folds; of both conditions.
        majority: rate of the commonest label.
        dropped: id of an item left out on request -> why.
        seed: of folds, control and bootstrap.
    """

    rows: pd.DataFrame
    rank: dict[str, float]
    majority: float
    dropped: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def frame(self) -> pd.DataFrame:
        """One line a condition: accuracy, its paired change from clean and from the control, and what is still read.

        Columns ``accuracy, change, over_control, read``, each with ``_low`` and ``_high`` (bootstrap over groups),
        ``p`` (of the change) and ``p_over_control``. What was decodable and is used: ``read`` falls to the majority,
        and accuracy falls further than under the control. What was decodable and is not used: only ``read`` falls.
        """
        by = {name: rows.set_index("item") for name, rows in self.rows.groupby("condition", sort=False)}
        lines = []
        for name, rows in by.items():
            line: dict[str, Any] = {"condition": name}
            for column, label in (("correct", "accuracy"), ("read", "read")):
                own = stats.cluster_mean_interval(rows[column].to_numpy(), rows.group, seed=self.seed)
                line |= {label: own.estimate, f"{label}_low": own.low, f"{label}_high": own.high}
            for other, label, p in ((CLEAN, "change", "p"), (CONTROL, "over_control", "p_over_control")):
                gap = stats.paired_difference(
                    by[other].correct[rows.index].to_numpy(), rows.correct.to_numpy(), rows.group, seed=self.seed
                )
                line |= {label: gap.estimate, f"{label}_low": gap.low, f"{label}_high": gap.high, p: gap.p}
            lines.append(line)
        return pd.DataFrame(lines).set_index("condition")

    def _repr_html_(self) -> str:
        note = f"{self.rows.item.nunique()} items, majority {self.majority:.3f}, {len(self.dropped)} left out"
        return block(title("Erasure test", note), interval_table(self.frame().reset_index().to_dict("records"), SHOWN))


def erasure_test(
    model: PrismModel,
    items: Sequence[Item],
    *,
    target: str = "content",
    positions: Sequence[Role] | None = None,
    site: str = LATENT,
    folds: int = 5,
    seed: int = 0,
    on_rare: str = "raise",
) -> ErasureTest:
    """Erase a label linearly at a site, with erasers fitted on the other folds, and run the held-out items.

    Each position has its own eraser, fitted on clean vectors. The runs are free: what is erased at one latent may come
    back at the next, which has its own eraser. Groups stay in one fold. Erasure takes away what is linearly there and
    nothing else; a network may read in other ways.

    Args:
        model: the model; its edits apply in all conditions.
        items: with options and answers.
        target: the label; see `decodability`.
        positions: roles with one position an item; every latent by default.
        site: hook name; the vector that is fed back by default.
        folds: of the items.
        seed: of folds, control and bootstrap.
        on_rare: see `decodability`.

    Raises:
        RoleError: no latents, or a role with several positions; SettingError: see `stratified_folds`.
    """
    kept, dropped = without_rare(items, item_column(items, target), folds, on_rare)
    labels = item_column(kept, target)
    classes, codes = coded(labels)
    groups = group_codes([item.group for item in kept], len(kept))
    fold_of = stratified_folds(codes, groups, folds, seed, classes=classes)
    shuffled = shuffled_labels(codes, fold_of, groups, 1, np.random.default_rng([seed, 3]))[0]
    clean = model.generate(kept)
    states = _states(model, clean, site, positions)
    parts, ranks, read = _by_fold(model, kept, clean, states, {ERASED: codes, CONTROL: shuffled}, fold_of, site)
    rows = pd.concat(parts, ignore_index=True)
    place = {item.id: n for n, item in enumerate(kept)}
    rows["read"] = [read[name][place[item]] for name, item in zip(rows["condition"], rows["item"], strict=True)]
    return ErasureTest(
        rows,
        {name: float(np.mean(own)) for name, own in ranks.items()},
        stats.majority_rate(labels).rate,
        dropped,
        seed,
    )


def _by_fold(
    model: PrismModel,
    kept: Sequence[Item],
    clean: Run,
    states: Mapping[Role, Tensor],
    labels: Mapping[str, np.ndarray],
    fold_of: np.ndarray,
    site: str,
) -> tuple[list[pd.DataFrame], dict[str, list[int]], dict[str, np.ndarray]]:
    """Rows of every condition, ranks of the erasers, and how often probes read the label; held-out items alone.

    Args:
        model: the model.
        kept: the items.
        clean: their run without erasure.
        states: clean values by role.
        labels: condition -> the codes that its erasers are fitted on.
        fold_of: the fold of each item.
        site: where is erased.
    """
    codes = labels[ERASED]
    parts, ranks = [_rows(kept, CLEAN, clean)], {ERASED: [], CONTROL: []}
    read = {name: np.zeros(len(kept)) for name in (CLEAN, ERASED, CONTROL)}
    for fold in range(int(fold_of.max()) + 1):
        held = np.flatnonzero(fold_of == fold)
        rest = torch.from_numpy(np.flatnonzero(fold_of != fold))
        fitted = {
            name: {role: _fitted(x[rest], given[rest.numpy()]) for role, x in states.items()}
            for name, given in labels.items()
        }
        for role, x in states.items():
            probe = LogisticProbe(C=STRENGTH).fit(x[rest].numpy(), codes[rest.numpy()])
            for name in read:
                own = x[held] if name == CLEAN else fitted[name][role](x[held])
                read[name][held] += (probe.predict(own.numpy()) == codes[held]) / len(states)
        for name, erasers in fitted.items():
            edits = [Edit(Erase(e.mean, e.removed, e.read), positions=role, site=site) for role, e in erasers.items()]
            part = [kept[n] for n in held.tolist()]
            parts.append(_rows(part, name, model.edited(*edits).generate(part)))
            ranks[name] += [eraser.rank for eraser in erasers.values()]
    return parts, ranks, read


def _states(
    model: PrismModel, run: Run, site: str, positions: Sequence[Role] | None
) -> dict[Role, Float[Tensor, "item d"]]:
    """The clean vector of every item at each role."""
    least = int(run.steps_taken.min())
    roles = [latent[step] for step in range(least)] if positions is None else list(positions)
    if not roles:
        raise RoleError(
            "there is no position to erase at", needed="at least one", cause="some item's model emitted no latents"
        )
    out = {}
    for role in roles:
        values = model.run_with_cache(run.items, [site], positions=role, run=run)[1].flat(site)
        if len(values) != len(run.items):
            raise RoleError(
                f"{role} names {len(values)} positions in {len(run.items)} items",
                needed="one in each item",
                fix="give single positions, such as latent[0] or question[-1]",
            )
        out[role] = values.double().cpu()
    return out


def _fitted(x: Float[Tensor, "item d"], codes: Int[np.ndarray, " item"]) -> Eraser:
    """The eraser of these labels."""
    return ErasureFitter(x.shape[1], int(codes.max()) + 1).update_labels(x, torch.from_numpy(codes)).eraser()


def _rows(items: Sequence[Item], condition: str, run: Run) -> pd.DataFrame:
    """One row an item."""
    return pd.DataFrame(
        {
            "item": [item.id for item in items], "group": [item.group for item in items], "condition": condition,
            "choice": list(run.choice), "correct": [float(bool(right)) for right in run.correct],
        }
    )  # fmt: skip
