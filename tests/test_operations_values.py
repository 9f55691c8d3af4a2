"""Operations that hold numbers, in double precision: theorems, exact JSON, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from prismlens.errors import EditError
from prismlens.interventions import Constant, Context, Edit, Mean, Noise, Project, Repeat, Shuffle, Steer, Values
from prismlens.interventions.values import LIMIT
from prismlens.probes import LinearReadout

N, D = 5, 7
X = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BASIS = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def context(**facts: Any) -> Context:
    return Context(tuple("abcde"), torch.arange(N), **facts)


def test_projections_are_the_textbooks() -> None:
    rest, inside = Project(BASIS)(X, context()), Project(BASIS, "subspace")(X, context())
    hat = BASIS.T @ torch.linalg.inv(BASIS @ BASIS.T) @ BASIS  # the projection of least squares
    assert torch.allclose(inside, X @ hat, atol=1e-12) and torch.allclose(rest, X - X @ hat, atol=1e-12)
    assert (rest @ BASIS.T).abs().max() < 1e-12, "nothing is left along the basis"
    assert torch.allclose(Project(BASIS)(rest, context()), rest, atol=1e-12), "twice is once"
    mixed = torch.tensor([[2.0, 1, 0], [0, 1, 0], [5, 0, -3]], dtype=torch.float64) @ BASIS
    assert torch.allclose(Project(mixed)(X, context()), rest, atol=1e-11), "only the span matters"
    assert torch.equal(Project(BASIS)(X[[3, 1]], Context(("d", "b"), torch.tensor([3, 1]))), rest[[3, 1]])


def test_a_steered_value_moves_by_so_many_units() -> None:
    moved = Steer(BASIS[0], -2.5)(X, context()) - X
    assert torch.allclose(moved, -2.5 * BASIS[:1].expand(N, D), atol=1e-12)
    spread = torch.linspace(1, 5, N, dtype=torch.float64)
    moved = Steer(7 * BASIS[0], 2.0, "std")(X, context(spread=spread)) - X
    assert torch.allclose(moved.norm(dim=1), 2 * spread, atol=1e-12), "the length given does not matter"
    assert torch.allclose(moved @ BASIS[0] / BASIS[0].norm(), 2 * spread, atol=1e-12)
    with pytest.raises(EditError, match="called without spread"):
        Steer(BASIS[0], 1.0, "std")(X, context())


def test_a_probes_direction_raises_its_score() -> None:
    readout = LinearReadout(("red", "blue"), np.asarray(BASIS[:2]), np.zeros(2))
    steer = Steer(readout.direction("red").vector, 10.0)
    assert readout.predict(np.asarray(steer(X, context()))) == ["red"] * N


def test_constants_are_the_vector_in_every_row_and_dtype() -> None:
    vector = X[2]
    assert torch.equal(Constant(vector)(X, context()), vector.expand(N, D))
    assert torch.equal(Constant(vector.tolist())(X.bfloat16(), context()), vector.bfloat16().expand(N, D))


def test_pure_noise_has_the_moments_that_it_names() -> None:
    n = 4000
    mean, std = torch.tensor([[3.0, -1.0]]).expand(n, 2), torch.tensor([[0.5, 2.0]]).expand(n, 2)
    facts = Context(tuple(map(str, range(n))), torch.zeros(n, dtype=torch.long), mean=mean, std=std)
    value = torch.full((n, 2), 100.0)
    drawn = Noise(1.0, "std", pure=True)(value, facts)
    for column in range(2):
        own = (drawn[:, column] - mean[:, column]) / std[:, column]
        assert stats.kstest(own.numpy(), "norm").pvalue > 0.01
    assert Noise(1.0, "std", pure=True).needs == {"mean", "std"} and Noise(1.0, pure=True).needs == frozenset()
    raw = Noise(0.5, pure=True)(value, facts)
    assert abs(raw.mean()) < 0.03 and abs(raw.std() - 0.5) < 0.03
    same_norm = Noise(1.0, "norm", pure=True)(value, facts)
    assert torch.allclose(same_norm.norm(dim=1), value.norm(dim=1)) and same_norm.mean().abs() < 5


def test_each_pair_may_have_its_own_mean_and_spread() -> None:
    each = torch.arange(N * D, dtype=torch.float64).reshape(N, D)
    assert torch.equal(Mean()(X, context(mean=each)), each)
    ratio = (Noise(1.0, "std")(X, context(std=each)) - X) / (Noise(1.0)(X, context()) - X)
    assert torch.allclose(ratio, each, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_shuffle_leaves_nothing_in_its_place(n: int) -> None:
    drawn = {Shuffle().order(n, f"item {i}") for i in range(200)}
    for order in drawn:
        assert sorted(order) == list(range(n)) and all(place != number for number, place in enumerate(order))
    assert len(drawn) == {2: 1, 3: 2}.get(n, len(drawn)) and (n < 8 or len(drawn) > 150)
    assert Shuffle().order(n, "same") == Shuffle().order(n, "same")
    assert Repeat().order(n, "any") == (0,) * n
    for op in (Shuffle(), Repeat()):
        with pytest.raises(EditError, match="at least 2 positions"):
            op.order(1, "any")


# --- numbers as data --------------------------------------------------------------------------------------------------


def test_numbers_are_compared_by_content_and_kept_exactly() -> None:
    odd = [0.1, math.pi, 1e-300, -1e300, 5e-324, 2.0**-1074 + 1]
    one, again = Constant(odd), Constant(torch.tensor(odd, dtype=torch.float64))
    assert one == again and hash(one) == hash(again) and len({one, again}) == 1
    assert one != Constant([*odd[:-1], 1.5]) and Constant([0.0]) == Constant([-0.0])
    read = Edit.from_json(Edit(one).to_json()).op
    assert isinstance(read, Constant) and isinstance(read.vector, Values) and read.vector.array().tolist() == odd
    assert Edit.from_yaml(Edit(Project(BASIS)).to_yaml()).op == Project(np.asarray(BASIS))
    assert json.loads(Edit(one).to_json())["op"]["vector"]["shape"] == [6]


def test_what_is_inside_an_edit_cannot_be_changed_from_outside() -> None:
    given = torch.ones(D)
    edit = Edit(Constant(given))
    given.zero_()
    assert isinstance(edit.op, Constant) and torch.equal(edit.op(X, context()), torch.ones(N, D, dtype=torch.float64))
    assert isinstance(edit.op.vector, Values)
    edit.op.vector.array()[:] = 3
    edit.op(X, context()).zero_()
    assert edit == Edit(Constant(torch.ones(D)))
    with pytest.raises(FrozenInstanceError):
        edit.op.vector = given  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant([[1.0]]), r"Constant\(vector\) with shape \(1, 1\)(.|\n)*one axis"),
        (lambda: Constant([]), r"shape \(0,\)"),
        (lambda: Constant([math.nan]), "not finite"),
        (lambda: Constant(torch.zeros(LIMIT + 1)), f"1 to {LIMIT} of them"),
        (lambda: Steer([0.0, 0.0], 1.0), "a direction of length 0"),
        (lambda: Steer([1.0], math.inf), "amount=inf"),
        (lambda: Steer([1.0], 1.0, "norm"), "needed: one of 'raw', 'std'"),
        (lambda: Project([1.0, 2.0]), "two axes"),
        (lambda: Project([[1.0, 2.0], [2.0, 4.0]]), "2 rows of rank 1"),
        (lambda: Project([[0.0, 0.0]]), "1 rows of rank 0"),
        (lambda: Project([[1.0]], "both"), "needed: one of 'rest', 'subspace'"),
        (lambda: Mean("layer"), "needed: one of 'step', 'stage', 'all'"),
        (lambda: Noise(1.0, "std", over="layer"), "needed: one of 'step', 'stage', 'all'"),
        (lambda: Noise(1.0, "norm", over="step"), r"over='step' with the unit 'norm'(.|\n)*no `over`"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(make: Any, message: str) -> None:
    with pytest.raises(EditError, match=message):
        make()


@pytest.mark.parametrize("op", [Constant(torch.ones(3)), Steer(torch.ones(3), 1.0), Project(torch.eye(3)[:1])], ids=str)
def test_numbers_of_another_width_are_refused(op: Any) -> None:
    with pytest.raises(EditError, match=f"vectors of 3 numbers, and the site has {D}"):
        op(X, context())


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(EditError, match="Constant\\(vector\\) with a str"):
        Constant("red")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="pure='yes'"):
        Noise(1.0, pure="yes")  # type: ignore[arg-type]
