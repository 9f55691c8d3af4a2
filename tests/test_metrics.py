"""Metrics against values worked by hand, and their behaviour at padding and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from prismlens.errors import SettingError
from prismlens.metrics import choice_from_logits, cosine, kl_over_options, margin, mse, option_logprobs

INF = math.inf


def test_option_logprobs_pick_the_options_in_order_and_pad() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1]])
    got = option_logprobs(probabilities.log() + 7, [[3, 0, 1], [2, 1]])
    assert torch.allclose(got.exp(), torch.tensor([[0.4, 0.1, 0.2], [0.4, 0.25, 0.0]]))
    assert got[1, 2] == -INF


def test_half_precision_is_raised_before_the_softmax() -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = option_logprobs(logits, [[1, 2]] * 3)
    assert got.dtype == torch.float32
    assert torch.equal(got, logits.float().log_softmax(-1)[:, 1:3])
    assert option_logprobs(logits.double(), [[1]] * 3).dtype == torch.float64


def test_choice_ignores_padding_and_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[-5.0, -3.0, -INF], [2.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    assert choice_from_logits(logits).tolist() == [1, 0, 2]


def test_margin_by_hand_and_its_sign_says_whether_the_choice_is_right() -> None:
    logits = torch.tensor([[0.4, 0.1, -INF], [0.2, 0.3, 0.5]])
    assert torch.allclose(margin(logits, torch.tensor([0, 1])), torch.tensor([0.3, -0.2]))
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    right = torch.arange(50) % 4
    assert torch.equal(margin(table, right) > 0, choice_from_logits(table) == right)
    assert torch.allclose(margin(table, right), margin(table.log_softmax(-1), right), atol=1e-6)


def test_kl_by_hand_with_padding_and_zero_only_for_itself() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    q = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]]).log() + 3
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert torch.allclose(kl_over_options(p, q), torch.tensor([expected, 0.0]), atol=1e-6)
    assert torch.equal(kl_over_options(p, p), torch.zeros(2))
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_over_options(q, p)[0].item() == pytest.approx(reverse, abs=1e-6)


def test_cosine_and_mse_by_hand() -> None:
    a = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[6.0, 8.0], [0.0, 2.0], [1.0, 1.0]]])
    angle = cosine(a, b)
    assert angle.shape == (1, 3)
    assert torch.allclose(angle[0, :2], torch.tensor([1.0, 0.0]))
    assert angle[0, 2].isnan()
    assert mse(a, b).tolist() == [[12.5, 2.5, 1.0]]
    assert cosine(a[:, :2], -a[:, :2]).tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: option_logprobs(x, [[0]]), "2 rows of logits and 1 of option ids"),
        (lambda x: option_logprobs(x, [[0], []]), r"row 1 has the option ids \[\]"),
        (lambda x: option_logprobs(x, [[0], [3]]), r"row 1 has the option ids \[3\][\s\S]*from 0 to 2"),
        (lambda x: option_logprobs(x, [[-1], [0]]), "row 0 has the option ids"),
        (lambda x: choice_from_logits(x * torch.nan), "row 0 holds NaN"),
        (lambda x: choice_from_logits(x - torch.inf), "row 0 has 0 options"),
        (lambda x: margin(x[:, :1], torch.tensor([0, 0])), "row 0 has 1 options"),
        (lambda x: margin(x, torch.tensor([0, 3])), "`right` is 3 in row 1"),
        (lambda x: margin(x, torch.tensor([0, -1])), "`right` is -1 in row 1"),
        (lambda x: margin(torch.tensor([[0.0, 0.0, -INF]]), torch.tensor([2])), "`right` is 2 in row 0"),
        (lambda x: kl_over_options(x, x.masked_fill(x == 1, -torch.inf)), "different options"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: margin(x, torch.tensor([0])), "there are 2 rows"),
        (lambda x: kl_over_options(x, x[:, :2]), r"\(2, 3\) and \(2, 2\)"),
        (lambda x: mse(x, x[:1]), "the same shape twice"),
        (lambda x: cosine(x, x[0]), "the same shape twice"),
    ],
)
def test_nothing_is_broadcast(call, message: str) -> None:
    # Where signatures are checked as the tests run, the annotated shapes are what refuses first.
    with pytest.raises((SettingError, TypeCheckError), match=f"{message}|Type-check error"):
        call(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
