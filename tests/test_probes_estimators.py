"""The probes as scikit-learn classifiers, against scikit-learn's own, and what they hand out in the raw space."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from prismlens.errors import SettingError
from prismlens.probes import CentroidProbe, LogisticProbe, MeanDifferenceProbe, RidgeProbe, out_of_fold
from prismlens.probes.linear import LinearProbe
from prismlens.probes.readout import LinearReadout

PROBES = [
    LogisticProbe(),
    RidgeProbe(),
    MeanDifferenceProbe(),
    CentroidProbe(),
    LogisticProbe(C=0.01, standardize=False),
]


@pytest.mark.usefixtures("unchecked")
@parametrize_with_checks(PROBES)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def data(k: int, n: int = 60, d: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k)
    names = np.array(["blue", "green", "red"])[:k]
    codes = np.arange(n) % k
    x = rng.normal(size=(n, d)) * np.geomspace(10, 0.1, d) + 5
    x[:, :k] += 2 * np.eye(k)[codes] * np.geomspace(10, 0.1, d)[:k]
    return x, names[codes]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    ("probe", "theirs"),
    [
        (LogisticProbe(C=0.3), make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=10_000))),
        (RidgeProbe(alpha=3.0), make_pipeline(StandardScaler(), RidgeClassifier(alpha=3.0))),
        (CentroidProbe(), make_pipeline(StandardScaler(), NearestCentroid())),
        (CentroidProbe(standardize=False), NearestCentroid()),
    ],
    ids=["logistic", "ridge", "centroid", "raw centroid"],
)
def test_predictions_are_scikit_learns(probe: LinearProbe, theirs, k: int):
    x, y = data(k)
    fresh, _ = data(k, n=500)
    probe.fit(x, y)
    theirs.fit(x, y)
    assert list(probe.predict(fresh)) == list(theirs.predict(fresh))
    if hasattr(probe, "predict_proba"):
        assert probe.predict_proba(fresh) == pytest.approx(theirs.predict_proba(fresh), abs=1e-5)
    if isinstance(probe, RidgeProbe):
        assert probe.decision_function(fresh) == pytest.approx(theirs.decision_function(fresh), abs=1e-8)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("k", [2, 3])
def test_the_readout_scores_raw_vectors_as_the_probe_does(probe: LinearProbe, k: int):
    x, y = data(k)
    readout = probe.fit(x, y).readout()
    assert readout.predict(x) == list(probe.predict(x)) and readout.classes == tuple(np.unique(y))
    scores = readout.scores(x)
    decided = scores[:, 1] - scores[:, 0] if k == 2 else scores
    assert decided == pytest.approx(probe.decision_function(x))
    direction = readout.direction("green", "blue")
    moved = readout.scores(x + 0.5 * direction.vector) - scores
    gain = moved[:, 1] - moved[:, 0]
    assert gain == pytest.approx(np.full(len(x), 0.5 * (direction.vector**2).sum()))


def test_the_difference_of_means_by_hand():
    x = np.array([[0.0, 0], [2, 0], [4, 2], [4, 4], [0, 10], [0, 12]])
    y = ["a", "a", "b", "b", "c", "c"]
    two = MeanDifferenceProbe().fit(x[:4], y[:4]).readout()
    assert two.direction("b", "a").vector == pytest.approx([6, 6])  # both classes' directions, (3, 3) and (-3, -3)
    assert two.scores(np.array([[2.5, 1.5]]))[0] == pytest.approx([0, 0])  # half way between (1, 0) and (4, 3)
    three = MeanDifferenceProbe().fit(x, y).readout()
    assert three.directions[2] == pytest.approx([0 - 2.5, 11 - 1.5])
    middle = np.array([[1.25, 6.25]])
    assert three.scores(middle)[0, 2] == pytest.approx(0, abs=1e-12)


def test_a_direction_is_against_one_class_or_the_mean_of_all_others():
    readout = LinearReadout(("a", "b", "c"), np.array([[1.0, 0], [0, 2], [0, 4]]), np.zeros(3))
    assert readout.direction("a", "b").vector.tolist() == [1, -2]
    assert readout.direction("a").vector.tolist() == [1, -3]
    assert readout.direction("c", "b").unit.tolist() == [0, 1]
    assert torch.equal(readout.direction("c", "b").tensor(), torch.tensor([0.0, 1.0]))
    assert readout.direction("a", "a").unit.tolist() == [0, 0]
    with pytest.raises(SettingError, match="the class 'd'"):
        readout.direction("d")


@pytest.mark.parametrize("probe", PROBES)
def test_one_class_or_one_row_is_refused(probe: LinearProbe):
    with pytest.raises(SettingError, match="n_samples = 3, all of one class: 'a'"):
        probe.fit(np.eye(3), ["a"] * 3)
    with pytest.raises(SettingError, match="n_samples = 1"):
        probe.fit(np.eye(1, 3), ["a"])


def test_constant_features_leave_the_majority():
    x, y = np.full((5, 3), 0.1), ["a", "b", "b", "b", "a"]
    for probe in (LogisticProbe(), RidgeProbe()):
        assert set(probe.fit(x, y).predict(x)) == {"b"}


def test_settings_out_of_range_are_refused():
    x, y = data(2)
    with pytest.raises(SettingError, match="C = 0"):
        LogisticProbe(C=0).fit(x, y)
    with pytest.raises(SettingError, match="alpha = -1"):
        RidgeProbe(alpha=-1).fit(x, y)


def test_out_of_fold_answers_come_from_the_other_folds_only():
    x, names = data(3)
    codes = np.unique(names, return_inverse=True)[1]
    folds = np.arange(len(codes)) // 3 % 4
    probe = LogisticProbe(C=0.1)
    said = out_of_fold(probe, x, codes, folds)
    for fold in range(4):
        held = folds == fold
        alone = LogisticProbe(C=0.1).fit(x[~held], codes[~held])
        assert np.exp(said.logprobs[held]) == pytest.approx(alone.predict_proba(x[held]))
        assert (said.predicted[held] == alone.predict(x[held])).all()
    assert not hasattr(probe, "coef_")
    assert np.isnan(out_of_fold(RidgeProbe(), x, codes, folds).logprobs).all()
