"""Where the published and the corrected procedure differ in training, each difference a field that can be flipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from prismlens.errors import SettingError

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "align_mean": ("slots", "published"),
        "text_mean": ("tokens", "pack"),
        "slots": ("budget", "box"),
        "budget": ("equal", "published"),
        "markers": ("forced", "decoded"),
        "alignment_items": ("held-out", "training"),
    }
)
"""The values that each field of `Protocol` may take, the corrected one first."""


@dataclass(frozen=True)
class Protocol:
    """How a variant is trained and decoded, whichever it is.

    Args:
        align_mean: ``"slots"``: one mean over all supervised slots of an optimiser step, for every variant.
            ``"published"``: for one stage, one mean over the slots of a pack, and the mean of these over packs; with
            several stages one mean for each (box, stage), *summed* over a pack. With b boxes and s stages in a pack
            the second is s * b times as heavy.
        text_mean: cross-entropy as one mean over all labelled tokens of a step, or as the mean over packs of the mean
            within each.
        slots: latents a stage in training: a fixed ``"budget"``, evenly spaced over the box's tokens, or every token
            of the ``"box"``.
        budget: latents at test: ``"equal"`` (every variant the same number in all, divided among its stages) or
            ``"published"`` (K in a block without stages; 2K for context and K for target, where K itself is twice that
            of the others).
        markers: at test the block's end markers and free tokens are ``"forced"`` by the loop, so that the free stage
            is defined, or ``"decoded"`` by the model itself.
        alignment_items: which items the alignment is reported on.
    """

    align_mean: str = "slots"
    text_mean: str = "tokens"
    slots: str = "budget"
    budget: str = "equal"
    markers: str = "forced"
    alignment_items: str = "held-out"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), CHOICES[field.name]
            if value not in allowed:
                raise SettingError(f"{field.name} = {value!r}", needed=" or ".join(map(repr, allowed)))

    def latents(self, n_stages: int, steps: int) -> tuple[int, ...]:
        """Latents at test for each of the stages that hold latents.

        Args:
            n_stages: how many stages hold latents.
            steps: the block's budget K.

        Raises:
            SettingError: an equal budget with fewer latents than stages.
        """
        if n_stages <= 1:
            return (steps,) * n_stages
        if self.budget == "published":
            return tuple(2 * steps * (2 if i < n_stages - 1 else 1) for i in range(n_stages))
        if steps < n_stages:
            raise SettingError(
                f"a budget of {steps} latents for {n_stages} stages", needed="at least one latent for each stage"
            )
        return tuple(steps * (i + 1) // n_stages - steps * i // n_stages for i in range(n_stages))


FAIR = Protocol()
PAPER = Protocol(*(CHOICES[field.name][1] for field in fields(Protocol)))
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({"fair": FAIR, "paper": PAPER})
"""By the names that users write; ``dataclasses.replace(FAIR, align_mean="published")`` flips one difference alone."""
