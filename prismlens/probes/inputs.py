"""Checks features and labels before anything is fitted, and names what is wrong with them; fits nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from prismlens.errors import SettingError


def coded(labels: Sequence[Hashable]) -> tuple[tuple[Hashable, ...], Int[np.ndarray, " item"]]:
    """The classes, sorted by their text, and the code of each item's label.

    Raises:
        SettingError: a label is missing, or there are fewer than two classes.
    """
    missing = [
        place for place, label in enumerate(labels) if label is None or label != label
    ]  # NaN differs from itself
    if missing:
        raise SettingError(
            f"{len(missing)} of {len(labels)} items have no label, the first is item {missing[0]}",
            needed="a label for every item",
            fix="leave these items out",
        )
    classes = tuple(sorted(set(labels), key=lambda label: (str(label), str(type(label)))))
    if len(classes) < 2:
        raise SettingError(
            f"{len(labels)} items with the labels {list(classes)}",
            needed="at least 2 classes: a probe of one class says nothing",
            cause="no items were left, or the target is the same for all of them",
        )
    place = {label: code for code, label in enumerate(classes)}
    return classes, np.array([place[label] for label in labels])


def checked_features(name: str, x: np.ndarray, ids: Sequence[str]) -> Float[np.ndarray, "item d"]:
    """The features as they are, or an error that names the place and the item.

    Raises:
        SettingError: another shape than one row an item, no features, NaN or infinity.
    """
    if x.ndim != 2 or len(x) != len(ids) or not x.shape[1]:
        raise SettingError(f"the features of {name} have the shape {x.shape}", needed=f"({len(ids)}, d), d at least 1")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        row = int(np.argmax(bad))
        value = x[row][~np.isfinite(x[row])][0]
        raise SettingError(
            f"the features of {name} hold {value} at item {ids[row]!r} ({int(bad.sum())} such items)",
            needed="finite numbers",
            cause="the forward overflowed (half precision?), or an edit wrote NaN",
            fix="load the model in float32 or bfloat16, or leave these items out",
        )
    return x


def group_codes(groups: Iterable[Hashable], n: int) -> Int[np.ndarray, " item"]:
    """A code for each item's group.

    Raises:
        SettingError: not one group an item, or a group is missing.
    """
    codes, _ = pd.factorize(pd.Series(list(groups), dtype=object), sort=False)
    if len(codes) != n or (codes < 0).any():
        raise SettingError(f"{len(codes)} groups for {n} items, {int((codes < 0).sum())} missing", needed="one an item")
    return codes
