"""Other labels for the same items: shuffled ones, and a control task's; fits nothing and sees no features."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Int

from prismlens.errors import SettingError


def shuffled_labels(
    codes: Int[np.ndarray, " item"],
    folds: Int[np.ndarray, " item"],
    groups: Int[np.ndarray, " item"],
    n: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "shuffle item"]:
    """`n` relabellings under which features and labels have nothing to do with each other.

    Whole groups of the same size exchange their labels, in item order, inside their fold. Inside the fold, because the
    folds were stratified by the true labels and have to be as well stratified by the shuffled ones, else the true ones
    win by that alone; whole groups, because the labels of one scene may depend on each other. Where each item is its
    own group this is a plain shuffle inside each fold.

    Raises:
        SettingError: no two groups of a fold have the same size and different labels, so that nothing can change.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups.tolist()):
        members[group].append(place)
    blocks: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for places in members.values():
        # Without grouping in the folds a group may lie in several; only what lies together moves together.
        by_fold: dict[int, list[int]] = defaultdict(list)
        for place in places:
            by_fold[int(folds[place])].append(place)
        for fold, part in by_fold.items():
            blocks[fold, len(part)].append(part)
    if n and not any(len({tuple(codes[part]) for part in parts}) > 1 for parts in blocks.values()):
        raise SettingError(
            f"{len(members)} groups, of which no two of the same size and with different labels lie in one fold",
            needed="labels that can be exchanged, for a permutation p",
            cause="groups are few, or each has a size of its own",
            fix="add groups, or pass n_permutations=0 and judge by selectivity and intervals",
        )
    out = np.repeat(codes[None], n, axis=0)
    for parts in blocks.values():
        table = np.array(parts)
        for row in out:
            row[table] = codes[table[rng.permutation(len(table))]]
    return out


def control_labels(
    codes: Int[np.ndarray, " item"],
    folds: Int[np.ndarray, " item"],
    types: Int[np.ndarray, " item"],
    n: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "control item"]:
    """`n` control tasks (Hewitt & Liang 2019, arXiv:1909.03368): every nuisance type has one random label, for good.

    What a probe can learn of them is that it tells types apart and remembers. Types come in random order, and each
    takes the label that is most wanting in its folds, so that the classes are about as frequent as the true ones and
    about as well stratified (exactly, where every item is its own type); ties are broken at random.
    """
    n_classes, n_folds = int(codes.max()) + 1, int(folds.max()) + 1
    wanted = np.zeros((n_folds, n_classes))
    np.add.at(wanted, (folds, codes), 1)
    presence = np.zeros((int(types.max()) + 1, n_folds))
    np.add.at(presence, (types, folds), 1)
    out = np.empty((n, len(codes)), dtype=np.int64)
    for row in out:
        lacking, label = wanted.copy(), np.zeros(len(presence), dtype=np.int64)
        for kind in rng.permutation(len(presence)):
            need = presence[kind] @ lacking
            label[kind] = rng.choice(np.flatnonzero(need >= need.max() - 1e-9))
            lacking[:, label[kind]] -= presence[kind]
        row[:] = label[types]
    return out
