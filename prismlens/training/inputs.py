"""What the slots are fed in training, one function a kind; all randomness comes from the seeds of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SettingError
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.training.batch import Batch
from prismlens.training.passes import Pass, forced_pass, own_pass

Targets = Float[Tensor, "batch slot d_model"]
FOREIGN_SHARE = 0.75
"""Share of slots that ``"foreign"`` feeds another image's own latent; the rest are fed ``"uninformative"`` vectors."""
_NOISE, _SCALE, _KIND, _KEPT = range(4)
"""What a row draws, each from a stream of its own: drawn from one, the vectors would depend on the choice of slots."""


def generators(batch: Batch, use: int) -> list[torch.Generator]:
    """A generator for every row, so that what a row draws depends on nothing but its own seed; one stream a use."""
    words = [np.random.SeedSequence([seed, use]).generate_state(1, np.uint64)[0] for seed in batch.seeds]
    return [torch.Generator().manual_seed(int(word) % 2**63) for word in words]


def row_noise(batch: Batch, targets: Targets) -> Targets:
    """Standard normal vectors, one a slot; rows draw only for the slots that they have."""
    return _drawn(batch, _NOISE, targets.shape[2], torch.randn).to(targets.device)


def uninformative(batch: Batch, targets: Targets) -> Targets:
    """Vectors that say nothing about their own question: zeros, noise of random scale, or another row's targets."""
    scale = (2 * _drawn(batch, _SCALE, 1, torch.rand)).to(targets.device)
    kind = (3 * _drawn(batch, _KIND, 1, torch.rand)).long().to(targets.device)
    noise = row_noise(batch, targets) * scale
    return torch.where(kind == 0, 0.0, torch.where(kind == 1, noise, targets.roll(_shift(batch), 0)))


def _drawn(batch: Batch, use: int, width: int, draw: Callable[..., Tensor]) -> Float[Tensor, "batch slot _"]:
    """`width` random numbers for every slot that a row has, 0 where it has none."""
    out = torch.zeros(*batch.slot_feature.shape, width)
    for row, generator in enumerate(generators(batch, use)):
        n = int(batch.slots[row].sum())
        out[row, :n] = draw((n, width), generator=generator)
    return out


def _shift(batch: Batch) -> int:
    """By how many rows to turn the batch, never by none.

    Raises:
        SettingError: there is one row only.
    """
    if len(batch.seeds) < 2:
        raise SettingError(
            "a micro-batch of one pack", needed="two: slots are fed what belongs to another",
            fix="lower `accumulate` or raise `batch`",
        )  # fmt: skip
    return 1 + batch.seeds[0] % (len(batch.seeds) - 1)


def _target(
    model: LVRForConditionalGeneration, batch: Batch, features: Tensor, targets: Targets, noise: float, layers: tuple
) -> Pass:
    fed = targets + noise * row_noise(batch, targets) if noise else targets
    return forced_pass(model, batch, features, fed, layers)


def _uninformative(
    model: LVRForConditionalGeneration, batch: Batch, features: Tensor, targets: Targets, noise: float, layers: tuple
) -> Pass:
    return forced_pass(model, batch, features, uninformative(batch, targets), layers)


def _foreign(
    model: LVRForConditionalGeneration, batch: Batch, features: Tensor, targets: Targets, noise: float, layers: tuple
) -> Pass:
    with torch.no_grad():
        own = own_pass(model, batch, features).sources.to(targets.dtype)
    others = own.roll(_shift(batch), 0)
    kept = _drawn(batch, _KEPT, 1, torch.rand) < FOREIGN_SHARE
    fed = torch.where(kept.to(own.device), others, uninformative(batch, targets))
    return forced_pass(model, batch, features, fed, layers)


def _own(
    model: LVRForConditionalGeneration, batch: Batch, features: Tensor, targets: Targets, noise: float, layers: tuple
) -> Pass:
    return own_pass(model, batch, features, layers)


PASSES: Mapping[str, Callable[[LVRForConditionalGeneration, Batch, Tensor, Targets, float, tuple], Pass]] = (
    MappingProxyType({"target": _target, "uninformative": _uninformative, "foreign": _foreign, "own": _own})
)
"""A forward for every name in `Phase.inputs`; noise is added to targets that are fed, and to nothing else."""
WAVES = frozenset({"foreign", "own"})
"""The inputs that need a batch laid out in waves."""
