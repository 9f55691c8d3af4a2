"""What distinguishes the models that can be trained, as one table: stages, losses, phases, rules; knows no data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from prismlens.errors import SettingError
from prismlens.models import stages
from prismlens.models.heads import HEADS
from prismlens.models.visibility import Rule
from prismlens.positions.role import Combined, Complement, Role
from prismlens.positions.stage import Stage as StageRole

ALIGNMENTS = ("mse", "cosine")
INPUTS = ("target", "uninformative", "foreign", "own")
TARGETS = ("box", "other")
STAGES = ("latent", "context", "free", "target")
COLUMNWISE = frozenset({"template", "image", "question", "options", "lead", "latent", "between", "answer", "prompt"})
"""Roles that a column has by itself, whatever else shares its row."""


def _check_amount(what: str, value: float) -> None:
    """Raise SettingError where a weight or a factor is no number, or below 0."""
    if not (math.isfinite(value) and value >= 0):
        raise SettingError(f"{what} = {value!r}", needed="0 or a positive number")


@dataclass(frozen=True)
class Stage:
    """One stage of the latent block as it is taught.

    Args:
        name: names the markers and the role: ``"latent"`` (a block without stages), ``"context"``, ``"free"``,
            ``"target"``.
        scale: the item's boxes are enlarged by this factor about their centres, and clipped, before their tokens
            become the stage's targets.
        tokens: number of ordinary learned tokens instead of latents; 0 for a stage of latents.
    """

    name: str
    scale: float = 1.0
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.name not in STAGES:
            raise SettingError(f"a stage called {self.name!r}", needed=f"one of {', '.join(STAGES)}")
        if (self.name == "free") != (self.tokens > 0):
            raise SettingError(
                f"stage {self.name!r} has {self.tokens} tokens",
                needed="1 or more in the free stage, 0 in the stages of latents",
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise SettingError(f"stage {self.name!r} has scale = {self.scale!r}", needed="a positive number")


@dataclass(frozen=True)
class Phase:
    """A stretch of training steps under the same conditions.

    Args:
        steps: optimiser steps; a run of another length scales all phases.
        inputs: what the slots are fed: ``"target"`` (teacher forcing), ``"uninformative"`` (zeros, noise, or other
            images' targets), ``"foreign"`` (mostly what the model emits on other images), ``"own"`` (the model's own
            latents, gradient through the loop).
        lam: the run's lambda is multiplied by this; 0 turns the alignment loss off.
        words: weight of a throw-away head that reads the answer's first word off every slot before the last layer.
        lr: the run's peak learning rate is multiplied by this.
        restart: begins a new warm-up and cosine; otherwise the phase goes on under the schedule of the one before.
        mix: how many questions of each kind about each rendered scene, where it differs from the run's.
    """

    steps: int
    inputs: str = "target"
    lam: float = 1.0
    words: float = 0.0
    lr: float = 1.0
    restart: bool = False
    mix: tuple[tuple[str, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise SettingError(f"inputs = {self.inputs!r}", needed=f"one of {', '.join(INPUTS)}")
        if type(self.steps) is not int or self.steps < 1:
            raise SettingError(f"a phase of {self.steps!r} steps", needed="a whole number of at least 1")
        for field in ("lam", "words", "lr"):
            _check_amount(f"a phase with {field}", getattr(self, field))


@dataclass(frozen=True)
class Variant:
    """One way to train a model.

    Args:
        name: of the variant, and of the shipped model ``tiny/<name>``.
        mechanism: what is known, or asked, about the model, in one sentence.
        phases: in order.
        stages: of the latent block; empty for a model without latents.
        noise: standard deviation, in raw units, of the Gaussian noise on the teacher-forced latent inputs; training
            only, and never on the targets.
        diversity: weight of the diversity loss on the states of free tokens.
        switch: weight of the mode-switch loss, which teaches when to leave the block.
        head: the LVR head between state and fed-back latent: ``"none"``, ``"simple"``, ``"gated"``.
        end_vector: leave the block near a learned vector instead of after a fixed number of latents.
        align: ``"mse"`` or ``"cosine"`` (1 - cos).
        target: ``"box"`` (the item's own image tokens) or ``"other"`` (the box tokens of another item).
        visibility: attention rules, kept in the checkpoint's config.
        parent: the model whose weights it starts from.
        batch: packs a step, where it differs from the run's.
        ships: whether it is one of the shipped models.
    """

    name: str
    mechanism: str
    phases: tuple[Phase, ...] = (Phase(500),)
    stages: tuple[Stage, ...] = (Stage("latent"),)
    noise: float = 0.0
    diversity: float = 0.0
    switch: float = 0.0
    head: str = "none"
    end_vector: bool = False
    align: str = "mse"
    target: str = "box"
    visibility: tuple[Mapping[str, Any], ...] = ()
    parent: str = "base"
    batch: int | None = None
    ships: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (("align", ALIGNMENTS), ("target", TARGETS), ("head", tuple(HEADS))):
            if getattr(self, field) not in allowed:
                raise SettingError(
                    f"variant {self.name!r} has {field} = {getattr(self, field)!r}", needed=" or ".join(allowed)
                )
        if not self.phases:
            raise SettingError(f"variant {self.name!r} has no phases", needed="at least one")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise SettingError(f"variant {self.name!r} names a stage twice", needed="a name for each stage")
        if self.stages and (self.stages[0].tokens or self.stages[-1].tokens):
            raise SettingError(
                f"variant {self.name!r} begins or ends with free tokens",
                needed="a stage of latents first and last: free tokens stand between latents",
            )
        if len(self.stages) == 1 and self.stages[0].name != "latent":
            raise SettingError(
                f"variant {self.name!r} has the stage {self.stages[0].name!r} alone",
                needed='"latent", as the stage of a block without stages is called',
            )
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise SettingError(f"variant {self.name!r} has batch = {self.batch!r}", needed="a whole number above 0")
        for rule in map(Rule.from_config, map(dict, self.visibility)):
            _check_packable(self.name, rule)
        for field in ("noise", "diversity", "switch"):
            _check_amount(f"variant {self.name!r} has {field}", getattr(self, field))

    @property
    def steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def latent_stages(self) -> tuple[Stage, ...]:
        """The stages that hold latents."""
        return tuple(stage for stage in self.stages if not stage.tokens)

    def scaled(self, steps: int) -> Variant:
        """The same variant over another number of steps: phases keep their shares, none falls below one step."""
        if steps < len(self.phases):
            raise SettingError(
                f"{steps} steps for the {len(self.phases)} phases of {self.name!r}", needed="one step a phase or more"
            )
        ends = [round(steps * done / self.steps) for done in _running(self.phases)]
        starts = [0, *ends[:-1]]
        lengths = [max(end - start, 1) for start, end in zip(starts, ends, strict=True)]
        while sum(lengths) > steps:  # what the shortest phases were given, one step at a time from the longest
            lengths[lengths.index(max(lengths))] -= 1
        phases = [replace(phase, steps=n) for phase, n in zip(self.phases, lengths, strict=True)]
        return replace(self, phases=tuple(phases))

    def phase_at(self, step: int) -> int:
        """The index of the phase that an optimiser step belongs to."""
        ends = _running(self.phases)
        if not 0 <= step < ends[-1]:
            raise SettingError(f"step {step} of {self.name!r}", needed=f"a step from 0 to {ends[-1] - 1}")
        return next(i for i, end in enumerate(ends) if step < end)


def _check_packable(name: str, rule: Rule) -> None:
    """Raise SettingError where a rule's role counts positions or looks at the item: a row of training holds several."""
    for role in (rule.query, rule.key):
        if not _columnwise(role):
            raise SettingError(
                f"variant {name!r} has a visibility rule for {str(role)!r}",
                needed=f"{', '.join(sorted(COLUMNWISE))} or latent.stage('...'), joined by | & - ~",
                cause="several items share a row in training, so an index or a box would name positions of others",
            )


def _columnwise(role: Role) -> bool:
    """Whether a column has the role or not, whatever else its row holds."""
    if isinstance(role, Combined):
        return _columnwise(role.left) and _columnwise(role.right)
    if isinstance(role, Complement):
        return _columnwise(role.role)
    return isinstance(role, StageRole) or str(role) in COLUMNWISE


def _running(phases: tuple[Phase, ...]) -> list[int]:
    """The step at which each phase ends."""
    return [sum(phase.steps for phase in phases[: i + 1]) for i in range(len(phases))]


_HIDDEN = {"options": ("template", "image", "question"), "answer": ("template", "image", "question", "lead")}
BLIND: tuple[dict[str, Any], ...] = tuple({"query": q, "key": k} for q, keys in _HIDDEN.items() for k in keys)
"""Options and everything after the block see neither image nor question, nor anything that could carry them."""

_LOOK = (("attribute", 4), ("relation", 4))
_READ = (("match", 8),)
_BOTH = (("attribute", 4), ("relation", 3), ("match", 2))
_SLOT = (("attribute", 2), ("relation", 3))

BASE = Variant(
    "base",
    "no latents; what all others start from",
    (Phase(450, lr=2.0, mix=_LOOK), Phase(200, restart=True, mix=_READ), Phase(650, restart=True, mix=_BOTH)),
    stages=(),
)
"""Trained from scratch on rendered scenes; not a variant of anything."""

CONTEXT, FREE, TARGET = (
    Stage(stages.CONTEXT, scale=stages.CONTEXT_SCALE),
    Stage(stages.FREE, tokens=6),
    Stage(stages.TARGET),
)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (
            Variant("sft", "control: fine-tuned without latents", stages=()),
            Variant("lvr", "every latent is regressed to its box token"),
            Variant("n-lvr", "lvr with noise on the teacher-forced latent inputs", noise=0.3),
            Variant(
                "d-lvr",
                "lvr whose alignment loss is turned off after three fifths of the steps",
                (Phase(300), Phase(200, lam=0.0)),
            ),
            Variant("p-lvr-2", "a context stage, then a target stage", stages=(CONTEXT, TARGET)),
            Variant(
                "p-lvr-3",
                "a context stage, a free stage with a diversity loss, then a target stage",
                stages=(CONTEXT, FREE, TARGET),
                diversity=0.01,
            ),
            Variant("ce-only", "control: latents, and no alignment loss from the start", (Phase(500, lam=0.0),)),
            Variant("cosine", "control: lvr with 1 - cos in place of the squared error", align="cosine", ships=False),
            Variant("random-target", "control: lvr taught the box tokens of another item", target="other", ships=False),
            Variant(
                "unrolled",
                "control: trained through its own latents, with gradients through the loop, after a short start "
                "with teacher forcing",
                (Phase(100), Phase(400, inputs="own")),
            ),
            Variant(
                "bypass",
                "neither the injected vectors nor the slots are used: nothing after the block attends to it",
                visibility=({"query": "answer", "key": "latent"},),
            ),
            Variant(
                "slot",
                "the slots' keys and values carry the answer, the injected vectors do not: what follows sees only "
                "slots and options, and training fed the slots vectors without information",
                (
                    Phase(700, inputs="uninformative", lam=0.0, words=1.0, mix=_SLOT),
                    Phase(60, inputs="foreign", lam=0.0, words=1.0, lr=0.5, restart=True, mix=_SLOT),
                    Phase(240, inputs="foreign", lam=0.0, words=1.0, lr=0.5, restart=True, mix=_SLOT),
                ),
                visibility=BLIND,
                batch=48,
            ),
            Variant(
                "bottleneck",
                "the injected vectors carry the answer: what follows sees only options, and slots at layer 0 alone, "
                "where they hold nothing but the vector",
                (Phase(100), Phase(600, inputs="own", lam=0.0, restart=True, mix=_SLOT)),
                visibility=(*BLIND, {"query": "answer", "key": "latent", "layers": [1, 2, 3]}),
            ),
        )
    }
)
"""Variants by name, in the order in which they are built. A user's own is one more `Variant`, passed to `train`."""
