"""Evaluation: hand-worked labellings and codes, nulls at their nominal rate, and one pipeline in two spellings."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import prismlens.probes.evaluation as evaluation
from prismlens.errors import SettingError
from prismlens.probes import (
    PROTOCOLS,
    Protocol,
    description_length,
    evaluate,
    information_bound,
    label_entropy,
    map_p,
    out_of_fold,
    permutation_p,
)
from prismlens.probes.choice import chosen_strengths
from prismlens.probes.description import _portion_ends
from prismlens.probes.folds import stratified_folds
from prismlens.probes.inputs import coded
from prismlens.probes.relabel import control_labels, shuffled_labels
from prismlens.stats import cluster_mean_interval, covers

FAIR = PROTOCOLS["fair"]
CODES = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] * 4)
GROUPS = np.arange(48) // 2


def noise(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def signal(codes: np.ndarray, d: int, strength: float, seed: int) -> np.ndarray:
    x = noise(len(codes), d, seed)
    x[:, : codes.max() + 1] += strength * np.eye(codes.max() + 1)[codes]
    return x


# --- folds ------------------------------------------------------------------------------------------------------------


def test_groups_stay_in_one_fold_and_classes_are_spread():
    folds = stratified_folds(CODES, GROUPS, 4, seed=0)
    assert all(len(set(folds[group == GROUPS])) == 1 for group in set(GROUPS))
    table = np.array([np.bincount(CODES[folds == fold], minlength=3) for fold in range(4)])
    assert (table == 4).all()
    assert not np.array_equal(folds, stratified_folds(CODES, GROUPS, 4, seed=1))


@pytest.mark.parametrize(
    ("codes", "groups", "message"),
    [
        ([0] * 9 + [1] * 3, None, r"1 of 2 classes have fewer members than folds: 'few' \(3\)"),
        ([0, 1] * 6, [0, 0, 1, 1] * 3, "2 groups and 4 folds"),
        ([0] * 8 + [1] * 4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8], "the class 'few' occurs in 1 of 4 folds"),
        ([0], None, "fewer members than folds"),
    ],
)
def test_labels_and_groups_that_cannot_be_split_are_refused(codes, groups, message):
    together = None if groups is None else np.array(groups)
    with pytest.raises(SettingError, match=message):
        stratified_folds(np.array(codes), together, 4, 0, classes=["many", "few"][: max(codes) + 1])


def test_two_folds_of_a_class_are_not_enough_where_c_is_chosen():
    codes = np.array([0] * 12 + [1] * 4)
    groups = np.array([*range(12), 12, 12, 13, 13])
    stratified_folds(codes, groups, 4, 0)
    with pytest.raises(SettingError, match="occurs in 2 of 4 folds"):
        stratified_folds(codes, groups, 4, 0, nested=True)


# --- other labels -----------------------------------------------------------------------------------------------------


def test_shuffles_keep_each_folds_counts_and_move_groups_whole():
    folds = stratified_folds(CODES, GROUPS, 4, seed=0)
    codes = np.where(np.arange(48) % 2, CODES + 3, CODES)  # second items have labels of their own
    out = shuffled_labels(codes, folds, GROUPS, 50, np.random.default_rng(0))
    for row in out:
        for fold in range(4):
            assert sorted(row[folds == fold]) == sorted(codes[folds == fold])
        pairs = sorted(zip(row[::2].tolist(), row[1::2].tolist(), strict=True))
        assert pairs == sorted(zip(codes[::2].tolist(), codes[1::2].tolist(), strict=True))
    assert len({tuple(row) for row in out}) == 50


def test_groups_of_different_size_do_not_exchange_labels():
    groups, codes = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 3])
    out = shuffled_labels(codes, np.zeros(4, dtype=int), groups, 20, np.random.default_rng(0))
    assert {tuple(row) for row in out} == {(0, 1, 2, 3), (0, 1, 3, 2)}


def test_labels_that_cannot_be_exchanged_are_refused_and_not_called_insignificant():
    folds = np.zeros(6, dtype=int)
    for codes, groups in (([0, 1, 1, 0, 0, 1], [0, 1, 1, 2, 2, 2]), ([0, 0, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3])):
        with pytest.raises(SettingError, match="no two of the same size and with different labels"):
            shuffled_labels(np.array(codes), folds, np.array(groups), 3, np.random.default_rng(0))
        assert shuffled_labels(np.array(codes), folds, np.array(groups), 0, np.random.default_rng(0)).shape == (0, 6)


def test_a_control_label_belongs_to_its_type_for_good_and_classes_are_as_frequent():
    folds, types = stratified_folds(CODES, GROUPS, 4, seed=0), np.arange(48) % 12
    out = control_labels(CODES, folds, types, 20, np.random.default_rng(0))
    for row in out:
        assert all(len(set(row[types == kind])) == 1 for kind in range(12))
        counts = np.bincount(row, minlength=3)  # of 16 wanted; a type of 4 items is the least that can be moved
        assert counts.min() >= 12 and counts.max() <= 20
    assert len({tuple(row) for row in out}) == 20


def test_where_every_item_is_its_own_type_control_labels_are_a_shuffle_inside_each_fold():
    folds = stratified_folds(CODES, GROUPS, 4, seed=0)
    for row in control_labels(CODES, folds, np.arange(48), 5, np.random.default_rng(0)):
        for fold in range(4):
            assert sorted(row[folds == fold]) == sorted(CODES[folds == fold])


# --- one pipeline, two spellings --------------------------------------------------------------------------------------


def test_the_papers_protocol_is_a_scikit_learn_pipeline_fold_by_fold():
    codes = np.repeat(np.arange(4), [20, 18, 9, 8])
    features = {"wide": signal(codes, 200, 2, 0).astype(np.float32), "narrow": signal(codes, 5, 1, 1)}
    cells = evaluate(features, codes.tolist(), [""] * len(codes), protocol="paper", n_permutations=3, n_controls=2)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000))
    for name, cell in cells.items():
        theirs = out_of_fold(pipeline, features[name].astype(np.float64), cell.codes, cell.folds)
        assert np.exp(cell.logprobs) == pytest.approx(np.exp(theirs.logprobs), abs=1e-5)
        assert (cell.predicted == theirs.predicted).all() and (cell.strengths == 1).all()
        table = evaluation._planned(codes.tolist(), [""] * 55, np.arange(55), PROTOCOLS["paper"], 3, 2, 0).labellings
        accuracies = [(out_of_fold(pipeline, features[name], row, cell.folds).predicted == row) for row in table]
        assert cell.control == pytest.approx(np.mean(accuracies[1:3], axis=0))
        assert cell.null == pytest.approx([right.mean() for right in accuracies[3:]])


def test_c_is_chosen_inside_each_training_set_and_never_by_the_fold_that_is_held_out():
    folds = stratified_folds(CODES, GROUPS, 4, seed=0)
    grid, places = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), set()
    for strength in (0.0, 1.5, 2.5, 6.0):
        x = signal(CODES, 30, strength, 0)
        chosen = chosen_strengths(x, CODES[None], folds, grid, 3)[:, 0]
        for fold in range(4):
            scores = [inner_score(x, folds, fold, c) for c in grid]
            rising = np.diff(scores) > 0
            assert chosen[fold] == grid[len(rising) if rising.all() else int(np.argmin(rising))]
            places.add(chosen[fold])
        spoilt = x.copy()
        spoilt[folds == 0] = noise(int((folds == 0).sum()), 30, 9) * 50
        assert chosen_strengths(spoilt, CODES[None], folds, grid, 3)[0, 0] == chosen[0]
    assert len(places) >= 3


def inner_score(x: np.ndarray, folds: np.ndarray, fold: int, strength: float) -> float:
    """Held-out log-probability over the folds that are left, each in turn, by scikit-learn."""
    rest = folds != fold
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-9, max_iter=10_000))
    return sum(
        pipeline.fit(x[rest][a], CODES[rest][a]).predict_log_proba(x[rest][b])[range(len(b)), CODES[rest][b]].sum()
        for a, b in GroupKFold(3).split(x[rest], CODES[rest], folds[rest])
    )


def test_numbers_do_not_depend_on_threads_or_on_what_else_is_on_the_map():
    features = {str(i): signal(CODES, 20, i, i) for i in range(3)}
    asked = {"n_permutations": 4, "n_controls": 2}
    one = evaluate(features, CODES.tolist(), GROUPS, jobs=1, **asked)
    two = evaluate(features, CODES.tolist(), GROUPS, jobs=2, **asked)
    alone = evaluate({"2": features["2"]}, CODES.tolist(), GROUPS, **asked)
    for name, cell in {**two, "2": alone["2"]}.items():
        assert np.array_equal(cell.logprobs, one[name].logprobs)
        assert np.array_equal(cell.null, one[name].null) and np.array_equal(cell.control, one[name].control)


def test_places_with_the_same_numbers_are_fitted_once_and_only_those(monkeypatch: pytest.MonkeyPatch):
    fitted: list[np.ndarray] = []
    plain = evaluation._evaluated
    monkeypatch.setattr(evaluation, "_evaluated", lambda x, plan: fitted.append(x) or plain(x, plan))
    x = signal(CODES, 20, 1, 0)
    features = {"a": x, "b": x.copy(), "c": x + 1e-9, "d": x.astype(np.float32), "e": x[:, ::-1], "f": x[:, :10]}
    cells = evaluate(features, CODES.tolist(), GROUPS, n_permutations=0)
    assert list(cells) == list(features) and len(fitted) == 5
    assert cells["b"] is cells["a"] is not cells["c"]
    assert (
        np.abs(cells["e"].logprobs - cells["a"].logprobs).max()
        < 1e-6
        < np.abs(cells["f"].logprobs - cells["a"].logprobs).max()
    )


# --- nulls and controls -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def null_maps() -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """40 maps of ten places of noise: accuracies, and accuracies under shuffled labels."""
    protocol, codes, maps = Protocol("small", (0.01,), folds=3), [0] * 12 + [1] * 12, []
    for seed in range(40):
        features = {str(i): noise(24, 3, 100 * seed + i) for i in range(10)}
        cells = evaluate(
            features, codes, range(24), protocol=protocol, n_permutations=19, n_controls=0, seed=seed, jobs=1
        )
        maps.append(
            (
                {name: float(cell.correct.mean()) for name, cell in cells.items()},
                {name: cell.null for name, cell in cells.items()},
            )
        )
    return maps


def test_p_is_at_its_nominal_rate_where_nothing_is_there(null_maps):
    """400 places of noise at p <= 0.1: a binomial count."""
    values = np.array([permutation_p(seen[name], nulls[name]) for seen, nulls in null_maps for name in seen])
    low, high = stats.binom.ppf([0.0005, 0.9995], 400, 0.1)
    hits = int((values <= 0.1).sum())
    assert hits <= high and np.mean(values) > 0.45
    # Accuracies of 24 items tie, so p is a little conservative; it has to stay near its rate all the same.
    assert hits >= low / 2


def test_the_corrected_p_is_at_its_nominal_rate_over_a_map_and_the_plain_one_is_not(null_maps):
    plain = [min(permutation_p(seen[name], nulls[name]) for name in seen) <= 0.1 for seen, nulls in null_maps]
    corrected = [min(map_p(seen, nulls).values()) <= 0.1 for seen, nulls in null_maps]
    assert sum(corrected) <= stats.binom.ppf(0.999, 40, 0.1) < sum(plain)


def test_p_values_by_hand():
    null = np.array([0.2, 0.3, 0.4])
    assert permutation_p(0.3, null) == 3 / 4 and permutation_p(0.5, null) == 1 / 4
    assert np.isnan(permutation_p(0.5, null[:0]))
    nulls = {"a": null, "b": np.array([0.5, 0.1, 0.1])}
    assert map_p({"a": 0.45, "b": 0.4}, nulls) == {"a": 2 / 4, "b": 3 / 4}
    with pytest.raises(SettingError, match="different numbers of shuffles"):
        map_p({"a": 0.4, "b": 0.4}, {"a": null, "b": null[:2]})


@pytest.mark.parametrize("protocol", ["paper", "fair"])
@pytest.mark.parametrize("own_type", [True, False])
def test_noise_has_no_selectivity(protocol: str, own_type: bool):
    rng = np.random.default_rng(3)
    codes = rng.permutation(np.repeat(np.arange(3), [50, 40, 30]))
    features = {str(i): noise(120, 40, i) for i in range(8)}
    types = np.arange(120) if own_type else rng.integers(30, size=120)
    cells = evaluate(features, codes.tolist(), range(120), nuisance=types, protocol=protocol, n_permutations=0)
    inside = [
        covers(cluster_mean_interval(cell.correct - cell.control, range(120), seed=0, n_resamples=2000), 0)
        for cell in cells.values()
    ]
    assert sum(inside) >= 7


def test_a_probe_that_tells_types_apart_has_accuracy_but_no_selectivity():
    """Labels that are a function of the question, features that hold only the question."""
    rng = np.random.default_rng(0)
    types = np.arange(120) % 6
    x = np.eye(6)[types] + 0.1 * rng.normal(size=(120, 6))
    cell = evaluate({"x": x}, (types % 3).tolist(), range(120), nuisance=types, n_permutations=0)["x"]
    assert cell.correct.mean() == 1 and cell.control.mean() == 1


def test_without_controls_or_shuffles_there_are_none():
    cell = evaluate({"x": signal(CODES, 4, 1, 0)}, CODES.tolist(), GROUPS, n_permutations=0, n_controls=0)["x"]
    assert np.isnan(cell.control).all() and cell.null.shape == (0,)


def test_groups_that_share_a_nuisance_do_not_leak():
    """Every group has its own offset and its own label: read off at once unless whole groups are held out."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    codes = (np.arange(30) % 2)[groups]
    x = 3 * rng.normal(size=(30, 40))[groups] + 0.1 * rng.normal(size=(120, 40))
    grouped = evaluate({"x": x}, codes.tolist(), groups, n_permutations=0, n_controls=0)["x"]
    leaking = evaluate({"x": x}, codes.tolist(), groups, protocol="paper", n_permutations=0, n_controls=0)["x"]
    assert leaking.correct.mean() > 0.95 and grouped.correct.mean() < 0.7


# --- information ------------------------------------------------------------------------------------------------------


def test_entropy_of_the_papers_labels_and_the_bound_by_hand():
    assert label_entropy([71, 70, 27, 23]) == pytest.approx(1.267, abs=5e-4)
    assert label_entropy([1, 1, 0]) == pytest.approx(np.log(2))
    assert information_bound(np.log(2), np.log([0.9, 0.8])) == pytest.approx(np.log(2) + np.log(0.72) / 2)
    assert information_bound(0.5, np.log([0.1, 0.1])) == 0 == information_bound(1.0, np.array([0.0, -np.inf]))


def test_the_online_code_by_hand():
    """32 items, one feature that does not vary: each portion costs what the classes' shares before it say, mixed."""
    codes = np.arange(32) % 2
    description = description_length(np.zeros((32, 1)), codes, np.arange(32), strengths=(1.0,), seed=4)
    order = np.argsort(np.random.default_rng(4).permutation(32))
    seen, nats = codes[order], 2 * np.log(2)
    for start, end in ((2, 4), (4, 8), (8, 16), (16, 32)):
        share = np.bincount(seen[:start], minlength=2) / start
        nats -= np.log((1 - 1 / (1 + start)) * share[seen[start:end]] + 1 / (1 + start) / 2).sum()
    assert description.nats == pytest.approx(nats) and description.uniform == pytest.approx(32 * np.log(2))


def test_the_online_code_is_shorter_the_plainer_the_label_and_a_choice_of_c_costs_little():
    codes = np.arange(160) % 4
    lengths = [description_length(signal(codes, 30, s, 0), codes).nats for s in (0, 2, 4, 8)]
    assert lengths == sorted(lengths, reverse=True)
    assert description_length(signal(codes, 30, 0, 0), codes).compression == pytest.approx(1, abs=0.1)
    assert description_length(signal(codes, 30, 8, 0), codes).compression > 2
    single = [description_length(signal(codes, 30, 4, 0), codes, strengths=(c,)).nats for c in FAIR.strengths]
    assert min(single) <= lengths[2] < min(single) + 10


def test_the_online_code_never_cuts_a_group():
    codes = np.arange(64) % 2
    groups = np.arange(64) // 8
    x = 5 * noise(8, 30, 0)[groups]  # knows the group, and nothing of what differs inside it
    assert description_length(x, codes, groups).compression < 1.1
    assert _portion_ends(np.array([4, 4, 4, 7, 7, 7, 1, 1, 1, 1])) == [3, 6, 10]  # 0.6, 1.25, 2.5, 5 and 10 were wanted


# --- what cannot be probed --------------------------------------------------------------------------------------------


def test_features_that_are_not_numbers_are_named_with_their_place_and_item():
    x = signal(CODES, 4, 1, 0)
    x[5, 2] = np.inf
    x[7, 0] = np.nan
    ids = [f"item {i}" for i in range(48)]
    with pytest.raises(SettingError, match=r"features of latent\[0\] hold inf at item 'item 5' \(2 such items\)"):
        evaluate({"fine": signal(CODES, 4, 1, 0), "latent[0]": x}, CODES.tolist(), GROUPS, ids=ids)


def test_constant_features_are_not_an_error_and_say_so():
    cell = evaluate({"x": np.full((48, 3), 0.7)}, CODES.tolist(), GROUPS, n_permutations=3)["x"]
    assert (
        cell.varying == 0
        and cell.correct.mean() <= 1 / 3
        and set(np.round(cell.null, 6)) == {round(cell.correct.mean(), 6)}
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 48, r"48 items with the labels \['a'\]"),
        (["a"] * 24 + [None] * 24, "24 of 48 items have no label, the first is item 24"),
        ([float("nan")] + ["a"] * 47, "1 of 48 items have no label"),
        ([], "0 items with the labels"),
        (["a"], "1 items with the labels"),
    ],
)
def test_labels_that_say_nothing_are_refused(labels, message):
    with pytest.raises(SettingError, match=message):
        coded(labels)


def test_settings_are_checked():
    features, labels = {"x": signal(CODES, 4, 1, 0)}, CODES.tolist()
    for asked, message in (
        ({"protocol": "best"}, "protocol='best'"), ({"n_permutations": -1}, "n_permutations=-1"),
        ({"jobs": 0}, "jobs=0"), ({"seed": -1}, "seed = -1"),
        ({"protocol": Protocol("p", (1.0,), folds=30)}, "fewer members than folds"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            evaluate(features, labels, GROUPS, **asked)
    with pytest.raises(SettingError, match="0 places"):
        evaluate({}, labels, GROUPS)
    with pytest.raises(SettingError, match="47 groups for 48 items"):
        evaluate(features, labels, GROUPS[1:])
    with pytest.raises(SettingError, match="folds = 2"):
        Protocol("p", (0.1, 1.0), folds=2)
    with pytest.raises(SettingError, match="strengths"):
        Protocol("p", (1.0, 0.1))
