"""The losses against numbers worked out by hand, and their gradients against differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prismlens.training.examples import IGNORE
from prismlens.training.objective import (
    DISTANCES,
    diversity,
    facts_loss,
    one_minus_cosine,
    part_weights,
    row_weights,
    squared_error,
    switch_loss,
    token_losses,
)
from prismlens.training.variants import ALIGNMENTS


def odds(*weights: float) -> list[float]:
    """Logits of probabilities in these proportions."""
    return [math.log(w) for w in weights]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def differences_agree(loss, *inputs: torch.Tensor, eps: float, atol: float) -> bool:
    """Central differences agree with the gradient. Losses are float32 inside, so steps are far above its rounding."""
    doubles = [one.double().requires_grad_() for one in inputs]
    return torch.autograd.gradcheck(loss, doubles, eps=eps, atol=atol, rtol=1e-2)


def test_token_losses_are_negative_log_probabilities_where_there_is_a_label():
    logits = torch.tensor([odds(1, 3), odds(1, 1), odds(9, 1), odds(4, 1)])
    losses = token_losses(logits, torch.tensor([1, IGNORE, 0, 1]))
    by_hand = [-math.log(3 / 4), 0, -math.log(9 / 10), -math.log(1 / 5)]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-6)


def test_columns_without_a_label_do_not_learn():
    logits = random(3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(token_losses(logits, torch.tensor([1, IGNORE, 0])).sum(), logits)
    assert not grad[1].any() and grad[0].any() and grad[2].any()
    labels = torch.tensor([1, IGNORE, 0])
    assert differences_agree(lambda x: token_losses(x, labels), random(3, 5), eps=1e-2, atol=1e-3)


def test_squared_error_is_the_mean_over_the_width_of_each_slot():
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 5.0]])
    targets = torch.tensor([[0.0, 2.0], [3.0, 2.0], [1.0, 1.0], [5.0, 2.0]])
    assert squared_error(states, targets).tolist() == [0.5, 2.0, 1.0, 4.5]


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_distances_are_computed_in_float32_whatever_they_are_given(distance):
    states = random(4, 32).bfloat16() * 100
    targets = random(4, 32, seed=1).bfloat16() * 100
    loss = distance(states, targets)
    assert loss.dtype == torch.float32
    exact = distance(states.float(), targets.float())
    assert torch.equal(loss, exact)


def test_in_bfloat16_the_difference_itself_would_be_wrong():
    states, targets = (torch.full((1, 2), value, dtype=torch.bfloat16) for value in (256.0, -1.0))
    assert squared_error(states, targets).item() == 257.0**2
    assert F.mse_loss(states, targets).item() != 257.0**2


def test_the_gradient_of_the_squared_error_is_that_of_a_square():
    states, targets = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    (grad,) = torch.autograd.grad(squared_error(states, targets).sum(), states)
    assert torch.allclose(grad, 2 * (states - targets).detach() / 4, atol=1e-7)
    # Central differences of a square are exact for a step of any size.
    assert differences_agree(squared_error, states.detach(), targets, eps=0.5, atol=1e-5)


def test_cosine_distances_of_right_equal_and_opposite_angles():
    states = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert one_minus_cosine(states, targets).tolist() == pytest.approx([0, 1, 1 - math.sqrt(0.5), 2], abs=1e-6)
    assert differences_agree(one_minus_cosine, random(3, 4), random(3, 4, seed=1), eps=1e-2, atol=1e-3)


def test_every_alignment_that_a_variant_may_name_is_a_distance():
    assert set(DISTANCES) == set(ALIGNMENTS)
    one, other = random(2, 4), random(2, 4, seed=1)
    assert torch.equal(DISTANCES["mse"](one, other), squared_error(one, other))
    assert torch.equal(DISTANCES["cosine"](one, other), one_minus_cosine(one, other))


def test_part_weights_make_a_sum_into_one_mean_a_part_summed():
    parts = torch.tensor([[7, 7, 8, 9, 9, 9], [7, 8, 7, -1, -1, -1]])
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    losses = torch.tensor([[1.0, 3.0, 5.0, 1.0, 2.0, 6.0], [4.0, 1.0, 8.0, 99.0, 99.0, 99.0]])
    weights = part_weights(parts, valid)
    assert weights[0].tolist() == pytest.approx([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])
    # mean(1, 3) + 5 + mean(1, 2, 6), and mean(4, 8) + 1: a part lives within its row
    assert (losses * weights).sum(1).tolist() == pytest.approx([10, 7])


def test_row_weights_make_a_sum_into_the_mean_of_each_row():
    valid = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    losses = torch.tensor([[1.0, 50.0, 2.0, 6.0], [50.0, 4.0, 50.0, 50.0], [50.0] * 4])
    assert (losses * row_weights(valid)).sum(1).tolist() == pytest.approx([3, 4, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_part_weights_sum_to_the_number_of_parts(slots):
    parts, valid = (torch.tensor([column]) for column in zip(*slots, strict=True))
    present = {part for part, there in slots if there}
    assert part_weights(parts, valid).sum().item() == pytest.approx(len(present), abs=1e-5)
    one = part_weights(torch.zeros_like(parts), valid)
    assert torch.allclose(one, row_weights(valid)), "with one part it is one mean"


def test_diversity_averages_squared_cosines_over_all_pairs_the_diagonal_as_zeros():
    # Angles of 0 and 60, 0 and 90, 60 and 90 degrees: squared cosines 1/4, 0, 3/4; each pair stands twice among nine.
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    states = torch.stack([angles.cos(), angles.sin()], 1)[None] * torch.tensor([1.0, 5.0, 0.1])[:, None]
    assert diversity(states).tolist() == pytest.approx([2 * (1 / 4 + 0 + 3 / 4) / 9], rel=1e-6)


def test_diversity_of_equal_states_and_of_orthogonal_ones():
    same, apart = torch.ones(1, 6, 8), torch.eye(8)[None, :6]
    assert diversity(torch.cat([same, apart])).tolist() == pytest.approx([30 / 36, 0], abs=1e-6)


def test_the_gradient_of_diversity():
    assert differences_agree(diversity, random(2, 3, 4), eps=1e-2, atol=1e-3)
    assert diversity(random(2, 3, 4).bfloat16()).dtype == torch.float32


def test_facts_loss_adds_the_surprise_of_every_fact():
    scores = torch.tensor([odds(1, 2, 1, 9, 1, 1), odds(2, 1, 1, 1, 1, 2)])
    facts = torch.tensor([[1, 0], [0, 2]])
    rows, columns = -(math.log(2 / 4) + math.log(2 / 4)), -(math.log(9 / 11) + math.log(2 / 4))
    assert facts_loss(scores, facts, (3, 3)).item() == pytest.approx(rows + columns, rel=1e-6)
    assert differences_agree(lambda x: facts_loss(x, facts, (3, 3)), random(2, 6), eps=1e-2, atol=1e-3)


def test_facts_loss_is_zero_where_nothing_is_named():
    assert facts_loss(torch.randn(0, 6), torch.zeros(0, 2, dtype=torch.long), (3, 3)).item() == 0


def test_facts_of_different_sizes_are_not_confused():
    scores = torch.tensor([[0.0, 50.0, 0.0, 0.0, 0.0, 0.0, 50.0]])
    assert facts_loss(scores, torch.tensor([[1, 4]]), (2, 5)).item() == pytest.approx(0, abs=1e-6)
    assert facts_loss(scores, torch.tensor([[1, 3]]), (2, 5)).item() > 40


def test_the_switch_loss_is_the_surprise_of_leaving_and_of_staying():
    logits = torch.tensor([math.log(3), math.log(3), 0.0])  # probabilities 3/4, 3/4, 1/2 of leaving
    losses = switch_loss(logits, torch.tensor([True, False, False]))
    assert losses.tolist() == pytest.approx([-math.log(3 / 4), -math.log(1 / 4), -math.log(1 / 2)], rel=1e-6)
    leaving = torch.tensor([True, False, True])
    assert differences_agree(lambda x: switch_loss(x, leaving), random(3), eps=1e-2, atol=1e-3)
    assert switch_loss(random(3).bfloat16(), leaving).dtype == torch.float32
