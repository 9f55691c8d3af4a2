"""The losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from prismlens.training.objective import alignment_loss, facts_loss, text_loss
from prismlens.training.sequences import IGNORE


def odds(*weights: float) -> list[float]:
    """Logits of probabilities in these proportions."""
    return [math.log(w) for w in weights]


def test_text_loss_is_the_mean_negative_log_probability_of_labelled_columns():
    logits = torch.tensor([[odds(1, 3), odds(1, 1), odds(9, 1)], [odds(4, 1), odds(1, 1), odds(1, 1)]])
    labels = torch.tensor([[1, IGNORE, 0], [1, IGNORE, IGNORE]])
    by_hand = -(math.log(3 / 4) + math.log(9 / 10) + math.log(1 / 5)) / 3
    assert text_loss(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)


def test_columns_without_a_label_neither_count_nor_learn():
    labels = torch.tensor([[1, IGNORE, 0]])
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = text_loss(logits, labels)
    other = logits.detach().clone()
    other[0, 1] = 100.0
    assert text_loss(other, labels).item() == loss.item()
    (grad,) = torch.autograd.grad(loss, logits)
    assert not grad[0, 1].any() and grad[0, 0].any() and grad[0, 2].any()


def test_alignment_is_the_mean_over_slots_and_width():
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [5.0, 5.0]]])
    targets = torch.tensor([[[0.0, 2.0], [3.0, 2.0]], [[1.0, 1.0], [5.0, 2.0]]])
    assert alignment_loss(states, targets).item() == pytest.approx((1 + 4 + 1 + 1 + 9) / 8)
    assert alignment_loss(states.repeat(1, 3, 1), targets.repeat(1, 3, 1)).item() == pytest.approx(16 / 8)


def test_alignment_is_computed_in_float32_whatever_it_is_given():
    states = torch.full((1, 1, 2), 256.0, dtype=torch.bfloat16)
    targets = torch.full((1, 1, 2), -1.0, dtype=torch.bfloat16)
    loss = alignment_loss(states, targets)
    assert loss.dtype == torch.float32 and loss.item() == 257.0**2
    assert F.mse_loss(states, targets).item() != 257.0**2, "in bfloat16 the difference itself is not representable"
    assert alignment_loss(states, targets.float()).item() == 257.0**2


def test_the_gradient_of_alignment_is_that_of_a_square():
    generator = torch.Generator().manual_seed(0)
    states, targets = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    states.requires_grad_()
    (grad,) = torch.autograd.grad(alignment_loss(states, targets), states)
    assert torch.allclose(grad, 2 * (states - targets).detach() / states.numel(), atol=1e-7)
    # The loss is a square, so central differences are exact for a step of any size: one far above float32's rounding.
    inputs = (states.detach().double().requires_grad_(), targets.double().requires_grad_())
    assert torch.autograd.gradcheck(alignment_loss, inputs, eps=0.5, atol=1e-5)


def test_facts_loss_adds_the_surprise_of_every_fact():
    scores = torch.tensor([[odds(1, 2, 1, 9, 1, 1), odds(1, 1, 1, 1, 1, 1), odds(2, 1, 1, 1, 1, 2)]])
    facts = torch.tensor([[[1, 0], [IGNORE, IGNORE], [0, 2]]])
    rows = -(math.log(2 / 4) + math.log(2 / 4)) / 2
    columns = -(math.log(9 / 11) + math.log(2 / 4)) / 2
    assert facts_loss(scores, facts, (3, 3)).item() == pytest.approx(rows + columns, rel=1e-6)


def test_facts_loss_is_zero_where_nothing_is_named():
    assert facts_loss(torch.randn(1, 2, 6), torch.full((1, 2, 2), IGNORE), (3, 3)).item() == 0


def test_facts_of_different_sizes_are_not_confused():
    scores = torch.tensor([[[0.0, 50.0, 0.0, 0.0, 0.0, 0.0, 50.0]]])
    assert facts_loss(scores, torch.tensor([[[1, 4]]]), (2, 5)).item() == pytest.approx(0, abs=1e-6)
    assert facts_loss(scores, torch.tensor([[[1, 3]]]), (2, 5)).item() > 40
