"""Operations on bare tensors: what each one does, that none depends on the batch, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions import Context, Identity, Mean, Noise, Operation, Scale, Swap, Zero

N, D = 6, 2048
IDS = ("a", "a", "a", "b", "b", "b")
STEPS = torch.tensor([0, 1, 2, 0, 1, 2])
STD = torch.linspace(0.5, 4.0, D)


def values(dtype: torch.dtype = torch.float32) -> Float[Tensor, "n d"]:
    """Some values, with a scale of about three."""
    return (3 * torch.randn(N, D, generator=torch.Generator().manual_seed(0))).to(dtype)


def context(seed: int = 0) -> Context:
    """A context that holds everything."""
    return Context(IDS, STEPS, std=STD, mean=torch.arange(D).float(), donors=values().flip(0), seed=seed)


GOLDEN = [-0.9744, -1.7698, -0.7966, -1.6989]
"""Saved results name only a seed, so what it gives must never change."""

EVERY = [Identity(), Zero(), Mean(), Swap(), Scale(2.0), Noise(0.5), Noise(0.5, "std"), Noise(0.5, "norm")]


@pytest.mark.parametrize("op", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_operation_keeps_shape_and_dtype_and_leaves_its_input(op: Operation, dtype: torch.dtype) -> None:
    value = values(dtype)
    before = value.clone()
    result = op(value, context())
    assert (result.shape, result.dtype) == (value.shape, dtype)
    assert result.data_ptr() != value.data_ptr()
    assert torch.equal(value, before)


@pytest.mark.parametrize("op", EVERY, ids=str)
def test_an_operation_gives_the_same_alone_and_in_any_order(op: Operation) -> None:
    value, whole = values(), context()
    together = op(value, whole)
    order = [4, 0, 5, 2]
    assert whole.donors is not None
    part = Context(
        tuple(IDS[i] for i in order), STEPS[order], std=STD, mean=whole.mean, donors=whole.donors[order], seed=0
    )
    assert torch.equal(op(value[order], part), together[order])


def test_identity_is_bit_equal() -> None:
    value = values()
    value[0, :3] = torch.tensor([math.nan, math.inf, -0.0])
    assert torch.equal(Identity()(value, context()).view(torch.int32), value.view(torch.int32))


def test_zero_mean_scale_and_swap_do_what_they_say() -> None:
    value, facts = values(), context()
    assert not Zero()(value, facts).any()
    assert torch.equal(Mean()(value, facts), torch.arange(D).float().repeat(N, 1))
    assert torch.equal(Scale(-2)(value, facts), -2 * value)
    assert torch.equal(Swap()(value, facts), value.flip(0))


def test_the_result_shares_no_memory_with_the_context() -> None:
    facts = context()
    assert facts.donors is not None and facts.mean is not None
    kept = facts.donors.clone(), facts.mean.clone()
    for op in (Swap(), Mean()):
        op(values(), facts).zero_()
    assert torch.equal(facts.donors, kept[0]) and torch.equal(facts.mean, kept[1])


def test_noise_has_the_stated_size() -> None:
    value, facts = values(), context()
    raw = (Noise(0.3)(value, facts) - value) / 0.3
    scaled = (Noise(0.3, "std")(value, facts) - value) / (0.3 * STD)
    for noise in (raw, scaled):
        # 12288 draws: the standard error of the mean is .009, that of the standard deviation .0064.
        assert abs(noise.mean().item()) < 0.036
        assert abs(noise.std().item() - 1) < 0.026
    ends = (Noise(0.3, "std")(value, facts) - value)[:, [*range(200), *range(-200, 0)]]
    assert ends[:, 200:].std() / ends[:, :200].std() > 4


def test_norm_matched_noise_is_exact() -> None:
    value = values(torch.float64) * torch.tensor([1.0, 2, 3, 4, 5, 0])[:, None]
    added = Noise(0.7, "norm")(value, context()) - value
    assert torch.allclose(added.norm(dim=-1), 0.7 * value.norm(dim=-1), rtol=1e-12, atol=0)
    assert not added[5].any()


def test_noise_depends_on_seed_site_item_and_step() -> None:
    zero = torch.zeros(N, D)
    noise = Noise(1.0)(zero, context())
    assert torch.equal(noise, Noise(1.0)(zero, context()))
    others = [Noise(1.0)(zero, context(seed=1)), Noise(1.0)(zero, replace(context(), site="blocks.1.attn.hook_k"))]
    cosines = torch.corrcoef(torch.cat([noise, *others])) - torch.eye(3 * N)
    assert cosines.abs().max() < 0.12  # 153 pairs, each with a standard deviation of .022
    assert torch.equal(Noise(0.0)(values(), context()), values())


def test_noise_never_changes_between_versions() -> None:
    noise = Noise(1.0)(torch.zeros(1, 4), Context(("item-1",), torch.tensor([2]), seed=7))
    torch.manual_seed(123)
    again = Noise(1.0)(torch.zeros(1, 4), Context(("item-1",), torch.tensor([2]), seed=7))
    assert torch.equal(noise, again)
    assert torch.allclose(noise, torch.tensor([GOLDEN]), atol=1e-4)


def test_noise_outside_latents_needs_offsets() -> None:
    outside = torch.tensor([-1, -1])
    with pytest.raises(EditError, match=r"2 positions of item 'a' have no latent step(.|\n)*offsets"):
        Noise(1.0)(torch.zeros(2, D), Context(("a", "a"), outside))
    placed = Noise(1.0)(torch.zeros(2, D), Context(("a", "a"), outside, offsets=torch.tensor([3, 4])))
    alone = Noise(1.0)(torch.zeros(1, D), Context(("a",), outside[:1], offsets=torch.tensor([4])))
    assert torch.equal(placed[1:], alone)
    assert not torch.equal(placed[0], placed[1])
    assert Noise(1.0)(torch.zeros(2, D), Context(("a", "b"), outside)).std() > 0.9


def test_offsets_do_not_touch_latents() -> None:
    zero = torch.zeros(N, D)
    placed = Context(IDS, STEPS, offsets=torch.arange(N))
    assert torch.equal(Noise(1.0)(zero, placed), Noise(1.0)(zero, Context(IDS, STEPS)))


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, -1, True])
def test_noise_refuses_a_bad_sigma(sigma: float) -> None:
    with pytest.raises(EditError, match="needed: a finite number of at least 0"):
        Noise(sigma)


def test_unknown_choices_and_factors_are_refused() -> None:
    with pytest.raises(EditError, match="needed: one of 'raw', 'std', 'norm'"):
        Noise(1.0, unit="variance")  # type: ignore[arg-type]
    with pytest.raises(EditError, match=r"donor='other'(.|\n)*'answer-in-options'"):
        Swap(donor="other")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="image='same'"):
        Swap(image="same")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="factor=nan"):
        Scale(math.nan)


@pytest.mark.parametrize(("op", "need"), [(Mean(), "mean"), (Swap(), "donors"), (Noise(1.0, "std"), "std")])
def test_a_missing_need_is_an_error(op: Operation, need: str) -> None:
    assert op.needs == {need}
    with pytest.raises(EditError, match=rf"called without {need}(.|\n)*Context\({need}="):
        op(values(), Context(IDS, STEPS))


@pytest.mark.parametrize("op", [Identity(), Zero(), Scale(1.0), Noise(1.0), Noise(1.0, "norm")], ids=str)
def test_other_operations_need_nothing(op: Operation) -> None:
    assert op.needs == frozenset()
    assert op(values(), Context(IDS, STEPS)).shape == (N, D)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EditError, match="6 item ids and 2 steps"):
        Context(IDS, STEPS[:2])
    with pytest.raises(EditError, match="given 5 values and 6 item ids"):
        Zero()(values()[:5], context())
    with pytest.raises(EditError, match=r"with mean \(3,\)(.|\n)*needed: mean \(2048,\)"):
        Mean()(values(), Context(IDS, STEPS, mean=torch.zeros(3)))
