"""What a cache takes: the bytes that were asked for, one layer's output, and nothing that grows with the prompt."""

import pytest
import torch

from benchmarks.hooks import Live, memory


@pytest.fixture(scope="module")
def long():
    return memory(4, 64, 3, 400)


def test_a_tensor_is_counted_once_while_it_lives():
    with Live() as live:
        one = torch.zeros(10)
        view = one.view(2, 5)
        other = one + 1
        assert live.now == 80
        del other
    assert live.now == 40 and live.peak == 80 and view.shape == (2, 5)


def test_a_cache_takes_what_was_asked_for_and_at_most_one_layer(long):
    assert long["asked"] == 3 * 4 * 4 * 64 * 4, "three items, four latents, four layers, 64 numbers of four bytes"
    assert long["above"] <= long["limit"]


def test_what_stays_does_not_grow_with_the_prompt(long):
    short = memory(4, 64, 3, 40)
    assert long["prompt tokens"] > 3 * short["prompt tokens"] and long["asked"] == short["asked"]
    assert long["kept after"] - short["kept after"] < 0.1 * long["asked"]
