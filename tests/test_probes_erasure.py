"""Erasure: the theorem in numbers, and that no smaller change would have done."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from prismlens.errors import SettingError
from prismlens.probes import ErasureFitter, LogisticProbe

N, D, K = 400, 12, 3


def data(seed: int = 0, d: int = D, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    codes = torch.arange(n) % K
    codes[: n // 10] = 0
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) @ torch.randn(d, d, generator=rng, dtype=torch.float64)
    return x + 4 * torch.randn(K, d, generator=rng, dtype=torch.float64)[codes] + 7, codes


def covariance(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    z = torch.nn.functional.one_hot(codes).double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("d", [D, 2 * N], ids=["narrow", "wider than the data"])
def test_after_erasure_no_linear_probe_beats_the_majority_and_before_it_did(d: int):
    x, codes = data(d=d)
    erased = ErasureFitter(d, K).update_labels(x, codes).eraser()(x)
    majority = int(codes.bincount().max()) / len(codes)
    assert covariance(x, codes).abs().max() > 0.5
    assert covariance(erased, codes).abs().max() < 1e-8 * x.abs().max()
    for strength in (1e-2, 1e4):
        before = LogisticProbe(C=strength, standardize=False).fit(x.numpy(), codes.numpy())
        after = LogisticRegression(C=strength, max_iter=1000).fit(erased.numpy(), codes.numpy())
        assert before.score(x.numpy(), codes.numpy()) > 0.9 > 2 * majority
        # The best linear model is the constant one, so what it says is each class's share.
        shares = np.broadcast_to(codes.bincount().numpy() / len(codes), (len(codes), K))
        assert after.predict_proba(erased.numpy()) == pytest.approx(shares, abs=1e-3)
        assert after.score(erased.numpy(), codes.numpy()) == majority


def test_the_mean_stays_twice_is_once_and_rank_is_classes_minus_one():
    x, codes = data()
    eraser = ErasureFitter(D, K).update_labels(x, codes).eraser()
    assert eraser.rank == K - 1
    assert eraser(x).mean(0) == pytest.approx(x.mean(0))
    assert eraser(eraser(x)) == pytest.approx(eraser(x))
    assert eraser(x.float()).dtype == torch.float32 and eraser(x.reshape(4, 100, D)).shape == (4, 100, D)


def test_it_moves_the_vectors_less_than_projecting_the_class_means_away():
    x, codes = data()
    erased = ErasureFitter(D, K).update_labels(x, codes).eraser()(x)
    basis = torch.linalg.svd(covariance(x, codes), full_matrices=False)[0][:, : K - 1]
    projected = x - (x - x.mean(0)) @ basis @ basis.T
    assert covariance(projected, codes).abs().max() < 1e-10  # it erases too,
    assert (erased - x).square().mean() < (projected - x).square().mean()  # at a higher price
    white = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    assert ((erased - x) @ white).square().mean() < ((projected - x) @ white).square().mean()


def test_by_hand_one_binary_concept_on_uncorrelated_features():
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * torch.tensor([3.0, 1])
    eraser = ErasureFitter(2, 2).update_labels(x, torch.tensor([1, 1, 0, 0])).eraser()
    assert eraser(x) == pytest.approx(torch.tensor([[0.0, 1], [0, -1], [0, 1], [0, -1]], dtype=torch.float64))


def test_batches_of_any_size_make_the_same_eraser():
    x, codes = data()
    whole = ErasureFitter(D, K).update_labels(x, codes).eraser()
    fitter = ErasureFitter(D, K)
    for part in (slice(0, 1), slice(1, 1), slice(1, 150), slice(150, N)):
        fitter.update_labels(x[part], codes[part])
    assert fitter.eraser()(x) == pytest.approx(whole(x), abs=1e-8)


def test_a_concept_that_does_not_vary_erases_nothing():
    x, _ = data()
    eraser = ErasureFitter(D, 2).update_labels(x, torch.zeros(N, dtype=torch.long)).eraser()
    assert eraser.rank == 0 and torch.equal(eraser(x), x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "z", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), r"x of the shape \(3, 2\)"),
        (torch.zeros(3, 4), torch.zeros(2, 1), r"z of the shape \(2, 1\)"),
        (torch.full((3, 4), float("nan")), torch.zeros(3, 1), "NaN or infinity"),
    ],
)
def test_what_cannot_be_used_is_refused(x, z, message):
    with pytest.raises(SettingError, match=message):
        ErasureFitter(4, 1).update(x, z)


def test_too_few_vectors_and_codes_out_of_range_are_refused():
    with pytest.raises(SettingError, match="an eraser of 1 vectors"):
        ErasureFitter(4, 2).update_labels(torch.zeros(1, 4), torch.tensor([0])).eraser()
    with pytest.raises(SettingError, match="codes from 0 to 2"):
        ErasureFitter(4, 2).update_labels(torch.zeros(2, 4), torch.tensor([0, 2]))
