"""The operation that adds Gaussian noise, the same for an item whatever batch it is in; knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import OVER, Context
from prismlens.interventions.operation import Operation, finite, one_of, present
from prismlens.interventions.transplant import seeded


def _raw(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise as it is."""
    return noise


def _std(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise in units of the site's standard deviation, dimension by dimension."""
    return noise * present(context.std).to(noise)


def _norm(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise of the same norm as the value that it is added to."""
    return noise * (value.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))


UNITS: dict[str, Callable[[Tensor, Tensor, Context], Tensor]] = {"raw": _raw, "std": _std, "norm": _norm}
"""How each unit scales standard normal noise."""


@dataclass(frozen=True)
class Noise(Operation):
    """Add ``sigma`` times standard normal noise to the value.

    Question: how precisely does the value have to be kept? In ``"raw"`` units (the paper's) the same sigma is a
    different share of the signal in every model; ``"std"`` and ``"norm"`` can be compared between models. Pure noise
    asks whether the value carries anything that its size does not.

    The noise is drawn in float32 on the CPU, from the edit's seed, the site, the item's id and the latent step alone:
    the same in any batch and on any device. Positions without a step are told apart by ``Context.offsets``.

    Args:
        sigma: how much, at least 0.
        unit: ``"raw"``: units of the activation. ``"std"``: units of the site's standard deviation over clean runs,
            per dimension. ``"norm"``: the noise vector has exactly ``sigma`` times the norm of that very value.
        pure: nothing of the value itself is left: the noise is added to the site's mean in units of its standard
            deviation (``Noise(1.0, "std", pure=True)`` has both moments of the site), and stands alone in other units.
        over: what mean and standard deviation are taken over, one of `context.OVER`; ``"stage"`` unless another is
            given, and none in other units.
    """

    sigma: float | int
    unit: str = "raw"
    pure: bool = False
    over: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", finite("sigma", self.sigma, minimum=0.0))
        one_of("unit", self.unit, tuple(UNITS))
        if not isinstance(self.pure, bool):
            raise EditError(f"pure={self.pure!r}", needed="True or False")
        if self.unit != "std":
            if self.over is not None:
                raise EditError(
                    f"over={self.over!r} with the unit {self.unit!r}",
                    needed="no `over`",
                    cause="nothing is measured in this unit",
                    fix='leave `over` out, or use unit="std"',
                )
            return
        object.__setattr__(self, "over", "stage" if self.over is None else self.over)
        one_of("over", self.over, OVER)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """``{"std"}`` in units of the standard deviation, ``"mean"`` too for pure noise, else nothing."""
        return frozenset({"std", *(["mean"] if self.pure else [])} if self.unit == "std" else ())

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The value, or what stands for it, with noise added; computed in at least float32."""
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        noise = _normal(context, value.shape[1]).to(exact)
        base = exact
        if self.pure:
            base = present(context.mean).to(exact) if self.unit == "std" else torch.zeros_like(exact)
        return (base + self.sigma * UNITS[self.unit](noise, exact, context)).to(value.dtype)


def _normal(context: Context, d: int) -> Float[Tensor, "n d"]:
    """One standard normal vector for each pair."""
    keys = _keys(context)
    noise = torch.empty(len(keys), d, dtype=torch.float32)
    for row, key in enumerate(keys):
        noise[row] = torch.randn(d, generator=seeded(key), dtype=torch.float32)
    return noise


def _keys(context: Context) -> list[str]:
    """The text that seeds each pair: seed, site, item and step, and outside latents the offset where it is given."""
    steps = context.steps.tolist()
    if context.offsets is None:
        _refuse_indistinct(context.item_ids, steps)
        marks = [""] * len(steps)
    else:
        marks = [f"@{offset}" if step < 0 else "" for step, offset in zip(steps, context.offsets.tolist(), strict=True)]
    return [
        f"{context.seed}|{context.site}|{item}|{step}{mark}"
        for item, step, mark in zip(context.item_ids, steps, marks, strict=True)
    ]


def _refuse_indistinct(item_ids: tuple[str, ...], steps: list[int]) -> None:
    """An EditError where an item has several positions that nothing tells apart: they would all get the same noise."""
    outside = Counter(item for item, step in zip(item_ids, steps, strict=True) if step < 0)
    repeated = [item for item, count in outside.items() if count > 1]
    if repeated:
        raise EditError(
            f"{outside[repeated[0]]} positions of item {repeated[0]!r} have no latent step and get the same noise",
            needed="offsets in the context, to tell the positions apart",
            cause="noise outside the latents, where the step is -1 everywhere",
            fix="pass Context(offsets=...): how many positions of its own row come before each one",
        )
