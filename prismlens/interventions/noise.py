"""The operation that adds Gaussian noise, the same for an item whatever batch it is in; knows no model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions.context import Context
from prismlens.interventions.operation import Operation, finite, one_of, present


def _raw(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise as it is."""
    return noise


def _std(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise in units of the site's standard deviation, dimension by dimension."""
    return noise * present(context.std).to(noise)


def _norm(noise: Tensor, value: Tensor, context: Context) -> Tensor:
    """Noise of the same norm as the value that it is added to."""
    return noise * (value.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))


UNITS: dict[str, tuple[Callable[[Tensor, Tensor, Context], Tensor], frozenset[str]]] = {
    "raw": (_raw, frozenset()),
    "std": (_std, frozenset({"std"})),
    "norm": (_norm, frozenset()),
}
"""How each unit scales standard normal noise, and what it needs."""


@dataclass(frozen=True)
class Noise(Operation):
    """Add ``sigma`` times standard normal noise to the value.

    Question: how precisely does the value have to be kept? In ``"raw"`` units (the paper's) the same sigma is a
    different share of the signal in every model; ``"std"`` and ``"norm"`` can be compared between models.

    The noise is drawn in float32 on the CPU, from the edit's seed, the site, the item's id and the latent step alone:
    the same in any batch and on any device. Positions without a step are told apart by ``Context.offsets``.

    Args:
        sigma: how much, at least 0.
        unit: ``"raw"``: units of the activation. ``"std"``: units of the site's standard deviation over clean runs,
            per dimension. ``"norm"``: the noise vector has exactly ``sigma`` times the norm of that very value.
    """

    sigma: float | int
    unit: str = "raw"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", finite("sigma", self.sigma, minimum=0.0))
        one_of("unit", self.unit, tuple(UNITS))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """``{"std"}`` in units of the standard deviation, else nothing."""
        return UNITS[self.unit][1]

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        """The value with noise added, computed in at least float32."""
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        noise = _normal(context, value.shape[1]).to(exact)
        scale, _ = UNITS[self.unit]
        return (exact + self.sigma * scale(noise, exact, context)).to(value.dtype)


def _normal(context: Context, d: int) -> Float[Tensor, "n d"]:
    """One standard normal vector for each pair."""
    keys = _keys(context)
    noise = torch.empty(len(keys), d, dtype=torch.float32)
    for row, key in enumerate(keys):
        # Python's own hash changes from process to process; this one does not.
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        noise[row] = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
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
