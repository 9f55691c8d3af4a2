"""Probes every place of a map with the same folds, controls and shuffles; knows no model, and computes no tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from prismlens.errors import SettingError
from prismlens.probes.choice import chosen_strengths
from prismlens.probes.description import Description, description_length
from prismlens.probes.folds import stratified_folds
from prismlens.probes.held_out import Split
from prismlens.probes.inputs import checked_features, coded, group_codes
from prismlens.probes.multinomial import ROUGH
from prismlens.probes.protocol import Protocol, protocol_of
from prismlens.probes.relabel import control_labels, shuffled_labels
from prismlens.probes.span import span


@dataclass(frozen=True, eq=False)
class Cell:
    """What a probe at one place said of each item when it had not been fitted on the item's fold.

    Args:
        classes: the labels, in the order of the codes.
        codes: each item's true label.
        folds: the fold that each item was held out in.
        logprobs: of every class (nats).
        control: share of the control tasks that the probe got right at each item; NaN without control tasks.
        null: accuracy under each shuffle of the labels; the same shuffles at all places.
        strengths: the C of each fold.
        varying: how many features vary at all.
        description: length of the online code.
    """

    classes: tuple[Hashable, ...]
    codes: Int[np.ndarray, " item"]
    folds: Int[np.ndarray, " item"]
    logprobs: Float[np.ndarray, "item class"]
    control: Float[np.ndarray, " item"]
    null: Float[np.ndarray, " shuffle"]
    strengths: Float[np.ndarray, " fold"]
    varying: int
    description: Description

    @property
    def predicted(self) -> Int[np.ndarray, " item"]:
        """Code of the likeliest class."""
        return self.logprobs.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """Whether each item's label was predicted."""
        return self.predicted == self.codes


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all places share; the labellings are the true one, then the controls, then the shuffles."""

    classes: tuple[Hashable, ...]
    groups: Int[np.ndarray, " item"]
    folds: Int[np.ndarray, " item"]
    labellings: Int[np.ndarray, "problem item"]
    n_controls: int
    protocol: Protocol
    seed: int


def evaluate(
    features: Mapping[str, Float[np.ndarray, "item _"]],
    labels: Iterable[Hashable],
    groups: Iterable[Hashable],
    *,
    nuisance: Iterable[Hashable] | None = None,
    protocol: str | Protocol = "fair",
    n_permutations: int = 99,
    n_controls: int = 5,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    jobs: int | None = None,
    progress: bool = False,
) -> dict[str, Cell]:
    """Cross-validated logistic probes of the same labels at every place, each with its controls.

    Args:
        features: name of the place -> one row an item.
        labels: one an item.
        groups: one an item; what the protocol keeps together.
        nuisance: the type of each item in the control task; each item its own by default, which asks how much can be
            memorised at all.
        protocol: ``"fair"``, ``"paper"``, or one's own.
        n_permutations: shuffles of the labels, each through the whole pipeline; 0 for none.
        n_controls: control tasks; 0 for none.
        seed: of folds, controls, shuffles and the order of the online code.
        ids: names of the items, for errors.
        jobs: threads; as many as there are processors by default. The numbers do not depend on it.
        progress: show a bar.

    Raises:
        SettingError: see `coded`, `stratified_folds` and `checked_features`; or no place, or a negative number.
    """
    labels = list(labels)
    names = [str(i) for i in range(len(labels))] if ids is None else list(ids)
    if not features or min(n_permutations, n_controls) < 0 or (jobs is not None and jobs < 1):
        raise SettingError(
            f"{len(features)} places, n_permutations={n_permutations}, n_controls={n_controls}, jobs={jobs}",
            needed="at least one place, no negative numbers, and a thread",
        )
    for name, x in features.items():
        checked_features(name, x, names)
    types = np.arange(len(labels)) if nuisance is None else group_codes(nuisance, len(labels))
    plan = _planned(labels, groups, types, protocol_of(protocol), n_permutations, n_controls, seed)
    twins = _twins(features)
    alone = {name: x for name, x in features.items() if twins[name] == name}
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        done = pool.map(lambda x: _evaluated(x, plan), alone.values())
        bar = tqdm(done, total=len(alone), desc="probes", disable=not progress, leave=False)
        cells = dict(zip(alone, bar, strict=True))
    return {name: cells[twins[name]] for name in features}


def _twins(features: Mapping[str, Float[np.ndarray, "item _"]]) -> dict[str, str]:
    """The first place with the very same numbers: what a latent is fed is what the step before it gave."""
    first: dict[tuple[str, bytes], str] = {}
    return {
        name: first.setdefault((f"{x.dtype} {x.shape}", hashlib.sha256(x.tobytes()).digest()), name)
        for name, x in features.items()
    }


def _planned(
    labels: Sequence[Hashable],
    groups: Iterable[Hashable],
    types: Int[np.ndarray, " item"],
    protocol: Protocol,
    n_permutations: int,
    n_controls: int,
    seed: int,
) -> _Plan:
    """Folds, controls and shuffles; each has its own generator, so that their numbers do not change each other."""
    if seed < 0:
        raise SettingError(f"seed = {seed}", needed="0 or more")
    classes, codes = coded(labels)
    together = group_codes(groups, len(codes)) if protocol.grouped else np.arange(len(codes))
    folds = stratified_folds(
        codes, together if protocol.grouped else None, protocol.folds, seed,
        nested=len(protocol.strengths) > 1, classes=classes,
    )  # fmt: skip
    controls = control_labels(codes, folds, types, n_controls, np.random.default_rng([seed, 1]))
    shuffles = shuffled_labels(codes, folds, together, n_permutations, np.random.default_rng([seed, 2]))
    table = np.concatenate([codes[None], controls, shuffles])
    return _Plan(classes, together, folds, table, n_controls, protocol, seed)


def _evaluated(x: Float[np.ndarray, "item d"], plan: _Plan) -> Cell:
    """The cell of one place."""
    n_classes, grid, true = len(plan.classes), plan.protocol.strengths, plan.labellings[:1]
    chosen = chosen_strengths(x, plan.labellings, plan.folds, grid, n_classes)
    logprobs = np.zeros((plan.labellings.shape[1], n_classes))
    right = np.zeros(plan.labellings[1:].shape)
    for fold, strengths in enumerate(chosen):
        test = plan.folds == fold
        split = Split.of(x, ~test, test)
        logprobs[test] = split.logprobs(true, strengths[:1], n_classes)[0]
        if len(right):
            said = split.logprobs(plan.labellings[1:], strengths[1:], n_classes, ROUGH).argmax(2)
            right[:, test] = said == plan.labellings[1:, test]
    control = right[: plan.n_controls].mean(0) if plan.n_controls else np.full(len(x), np.nan)
    return Cell(
        plan.classes, true[0], plan.folds, logprobs, control, right[plan.n_controls :].mean(1), chosen[:, 0],
        span(x.astype(np.float64)).varying, description_length(x, true[0], plan.groups, strengths=grid, seed=plan.seed),
    )  # fmt: skip
