"""Box to image tokens: hand-worked values of the paper's rule, and what holds for every box."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlens.errors import RoleError
from prismlens.positions import box_tokens, slot_tokens


@pytest.mark.parametrize(
    ("box", "grid", "tokens"),
    [
        ((0.0, 0.0, 1.0, 1.0), (2, 3), [0, 1, 2, 3, 4, 5]),
        # 4 x 4 tokens are 8 x 8 fine cells. x: floor(2.4) = 2 -> 1; ceil(4.8) = 5 -> 3. y: 0 -> 0; ceil(1.6) = 2 -> 1.
        ((0.3, 0.0, 0.6, 0.2), (4, 4), [1, 2]),
        # x: floor(4.8) = 4 -> 2; ceil(5.6) = 6 -> 3. y: floor(6.4) = 6 -> 3; ceil(7.2) = 8 -> 4.
        ((0.6, 0.8, 0.7, 0.9), (4, 4), [14]),
        # 2 rows, 4 columns: x: floor(4.0) = 4 -> 2; ceil(8) = 8 -> 4. y: floor(1.2) = 1 -> 0; ceil(2.4) = 3 -> 2.
        ((0.5, 0.3, 1.0, 0.6), (2, 4), [2, 3, 6, 7]),
        ((0.25, 0.25, 0.5, 0.5), (4, 4), [5]),
        ((-0.5, -0.5, 0.1, 2.0), (2, 2), [0, 2]),
        ((1.0, 1.0, 1.0, 1.0), (2, 2), [3]),
        ((0.0, 0.0, 0.0, 0.0), (2, 2), [0]),
    ],
)
def test_box_tokens_by_hand(box: tuple[float, float, float, float], grid: tuple[int, int], tokens: list[int]) -> None:
    assert box_tokens(box, grid) == tokens


UNIT = st.floats(0, 1, exclude_max=True)


@given(UNIT, UNIT, st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(1, 9), st.integers(1, 9))
def test_box_tokens_cover_the_box_and_no_token_off_it(
    x: float, y: float, width: float, height: float, rows: int, cols: int
) -> None:
    box = (x, y, min(1.0, x + width), min(1.0, y + height))
    tokens = box_tokens(box, (rows, cols))
    assert tokens == sorted(set(tokens))
    assert set(tokens) <= set(range(rows * cols))
    centre_row, centre_col = (
        min(int((box[1] + box[3]) / 2 * rows), rows - 1),
        min(int((box[0] + box[2]) / 2 * cols), cols - 1),
    )
    centre = centre_row * cols + centre_col
    assert centre in tokens


def test_box_tokens_refuses_an_empty_grid_and_bad_numbers() -> None:
    with pytest.raises(RoleError, match="grid is 0 x 3"):
        box_tokens((0.0, 0.0, 1.0, 1.0), (0, 3))
    with pytest.raises(RoleError, match="four finite numbers"):
        box_tokens((0.0, 0.0, float("nan"), 1.0), (2, 2))


LEFT, RIGHT, MIDDLE = (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.25, 0.75, 0.75, 1.0)
"""On a 4 x 4 grid: tokens 0, 1, 4, 5; tokens 2, 3, 6, 7; tokens 13, 14."""


@pytest.mark.parametrize(
    ("boxes", "steps", "tokens"),
    [
        # as many tokens as steps, fewer steps (every second token, every fourth), more steps (each twice, some twice)
        ([LEFT], 4, [0, 1, 4, 5]),
        ([LEFT], 2, [0, 4]),
        ([LEFT], 1, [0]),
        ([LEFT], 3, [0, 1, 4]),
        ([LEFT], 8, [0, 0, 1, 1, 4, 4, 5, 5]),
        ([MIDDLE], 5, [13, 13, 13, 14, 14]),
        # two boxes: half of the steps each, the odd one to the later
        ([LEFT, RIGHT], 4, [0, 4, 2, 6]),
        ([RIGHT, LEFT], 4, [2, 6, 0, 4]),
        ([LEFT, RIGHT], 5, [0, 4, 2, 3, 6]),
        ([LEFT, LEFT], 2, [0, 0]),
        # three boxes
        ([LEFT, RIGHT, MIDDLE], 3, [0, 2, 13]),
        ([LEFT, RIGHT, MIDDLE], 8, [0, 4, 2, 3, 6, 13, 13, 14]),
        # more boxes than steps: the first ones have none
        ([LEFT, RIGHT, MIDDLE], 2, [2, 13]),
        ([LEFT, RIGHT, MIDDLE], 1, [13]),
    ],
)
def test_slot_tokens_by_hand(boxes: list[tuple[float, float, float, float]], steps: int, tokens: list[int]) -> None:
    assert slot_tokens(boxes, (4, 4), steps) == tokens


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
def test_slot_tokens_are_one_a_step_inside_the_boxes_and_in_their_order(
    count: int, steps: int, rows: int, cols: int
) -> None:
    boxes = [(i / 7, i / 9, (i + 2) / 7, (i + 3) / 9) for i in range(count)]
    tokens = slot_tokens(boxes, (rows, cols), steps)
    assert len(tokens) == steps
    left = list(tokens)
    for number, box in enumerate(boxes):
        share = steps * (number + 1) // count - steps * number // count
        own, left = left[:share], left[share:]
        assert own == sorted(own) and set(own) <= set(box_tokens(box, (rows, cols)))
        assert abs(share - steps / count) < 1


def test_slot_tokens_refuses_an_item_without_boxes() -> None:
    with pytest.raises(RoleError, match="an item without boxes"):
        slot_tokens([], (4, 4), 3)
