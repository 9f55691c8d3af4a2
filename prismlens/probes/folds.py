"""Which fold each item is held out in; knows labels and groups, no features."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from prismlens.errors import SettingError


def stratified_folds(
    codes: Int[np.ndarray, " item"],
    groups: Int[np.ndarray, " item"] | None,
    n_folds: int,
    seed: int,
    *,
    nested: bool = False,
    classes: Sequence[Hashable] = (),
) -> Int[np.ndarray, " item"]:
    """The fold of each item: class shares alike in all folds, whole groups in one fold where groups are given.

    Args:
        codes: of the labels.
        groups: of the items, or None.
        n_folds: how many.
        seed: of the shuffle.
        nested: whether a second fold is going to be taken out of each training set, to choose C.
        classes: names of the codes, for errors.

    Raises:
        SettingError: a class has fewer members than folds, there are fewer groups than folds, or a class sits in so few
            groups that some training set would lack it.
    """
    names = list(classes) or list(range(int(codes.max()) + 1))
    counts = np.bincount(codes, minlength=len(names))
    _refuse_rare(dict(zip(names, counts.tolist(), strict=True)), n_folds)
    shuffled = {"n_splits": n_folds, "shuffle": True, "random_state": seed}
    rows = np.zeros((len(codes), 1))
    if groups is None:
        parts = StratifiedKFold(**shuffled).split(rows, codes)
    else:
        _refuse_few_groups(groups, n_folds)
        parts = StratifiedGroupKFold(**shuffled).split(rows, codes, groups)
    folds = np.zeros(len(codes), dtype=np.int64)
    for fold, (_, held_out) in enumerate(parts):
        folds[held_out] = fold
    least = 3 if nested else 2
    for code, name in enumerate(names):
        reached = len(np.unique(folds[codes == code]))
        if reached < least:
            raise SettingError(
                f"the class {str(name)!r} occurs in {reached} of {n_folds} folds",
                needed=f"at least {least}: otherwise some training set lacks it",
                cause="most of its items are in one group, and a group stays in one fold",
                fix="add items of other groups, or leave the class out",
            )
    return folds


def _refuse_rare(counts: dict[Hashable, int], n_folds: int) -> None:
    """A SettingError that names the classes with fewer members than folds."""
    rare = {name: count for name, count in counts.items() if count < n_folds}
    if rare:
        shown = ", ".join(f"{str(name)!r} ({count})" for name, count in list(rare.items())[:8])
        raise SettingError(
            f"{len(rare)} of {len(counts)} classes have fewer members than folds: {shown}",
            needed=f"at least {n_folds} items of every class",
            fix="add items, or leave the rare classes out (on_rare='drop')",
        )


def _refuse_few_groups(groups: Int[np.ndarray, " item"], n_folds: int) -> None:
    """A SettingError where there are not enough groups to fill the folds."""
    found = len(np.unique(groups))
    if found < n_folds:
        raise SettingError(
            f"{found} groups and {n_folds} folds",
            needed="at least as many groups as folds: items of one group stay together",
            cause="few scenes with many questions each" if found > 1 else "the items' `group` was left empty",
            fix="give unrelated items a group each, or use protocol='paper', which does not group",
        )
