"""The stages of a latent block: what opens each, how many latents it takes, what follows; knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prismlens.errors import CheckpointError

LATENT, CONTEXT, TARGET, FREE = "latent", "context", "target", "free"
"""Names: of the stage of a block that has one only, of those of P-LVR, and of free tokens between stages."""
Config = Any
"""An `LVRConfig`, whose own file reads this one and so cannot be named here."""
FIELDS = {"name", "start", "steps", "close", "scale"}
CONTEXT_SCALE = 1.5
"""How much larger than the item's boxes those of a released model's context stage are."""


@dataclass(frozen=True)
class Stage:
    """One stage of latents.

    Args:
        name: as in ``latent.stage(name)``.
        start: the token id that opens the stage when it was the last token fed, whoever wrote it.
        steps: latents in the stage (the cap, when the exit rule is not ``"fixed"``).
        close: ids forced after its last latent; where the last of them opens another stage, that stage is forced too.
        scale: the latents are taught the tokens of the item's boxes enlarged by this factor.
        gap: positions that stay free after the last latent: what follows is numbered as if they were taken.
    """

    name: str
    start: int
    steps: int
    close: tuple[int, ...] = ()
    scale: float = 1.0
    gap: int = 0


def stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a model, in order; none where it has no latents.

    Those of ``latent_stages`` where the configuration lists them. A released P-LVR configuration lists none, but has
    ``ctx_start_id``: the stages are then context (``2 * latent_steps`` latents) and target (``latent_steps``), opened
    by the ctx and the tgt start marker, and nothing is forced after them, as the released code decodes. Else there is
    one stage, ``"latent"``, with ``lvr_start_id``, ``latent_steps`` and ``latent_close``.

    Raises:
        CheckpointError: an entry of ``latent_stages`` is not a stage, or a marker's id is missing.
    """
    if config.latent_entry == "none":
        return ()
    if config.latent_stages:
        return tuple(_read(entry) for entry in config.latent_stages)
    if config.ctx_start_id is not None:
        if config.tgt_start_id is None:
            raise CheckpointError(
                "config has ctx_start_id and no tgt_start_id",
                needed="both, or the stages in latent_stages",
                cause="a config edited by hand",
                fix="copy the ids of the stage markers from the tokenizer",
            )
        k = config.latent_steps
        return (Stage(CONTEXT, config.ctx_start_id, 2 * k, scale=CONTEXT_SCALE), Stage(TARGET, config.tgt_start_id, k))
    if config.lvr_start_id is None:
        raise CheckpointError(
            "config lacks lvr_start_id",
            needed="the token id that opens the latent block",
            cause="the checkpoint is a plain Qwen2.5-VL, never trained with latents",
            fix='set latent_entry to "none" to analyse it without latents',
        )
    return (Stage(LATENT, config.lvr_start_id, config.latent_steps, tuple(config.latent_close)),)


def first_stage(config: Config) -> Stage:
    """The stage whose start token a prompt ends with under forced entry.

    Raises:
        CheckpointError: the model has no latents; see also `stages`.
    """
    found = stages(config)
    if not found:
        raise CheckpointError(
            'config has latent_entry = "none"', needed="a model with latents", cause="a model without stages was asked"
        )
    return found[0]


def stage_names(config: Config, own: Sequence[Stage] | None = None) -> tuple[str, ...]:
    """The names of the stages (`own`, or the configuration's), then ``"free"`` where there is a free token."""
    named = tuple(stage.name for stage in (stages(config) if own is None else own))
    return (*named, FREE) if named and config.free_id is not None else named


def check_stages(found: Sequence[Stage], vocab_size: int) -> None:
    """Raise CheckpointError where stages contradict each other, or force each other without end.

    A start id may stand in a `close` only at its end: what came after it would be forced into the stage that it opens.
    """
    for what in ("name", "start"):
        values = [getattr(stage, what) for stage in found]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise _bad(f"two stages with the {what} {twice[0]!r}", f"a {what} of its own for each stage")
    for stage in found:
        if stage.name == FREE:
            raise _bad('a stage of latents called "free"', "another name: that one is for free tokens")
        if stage.steps < 1:
            raise _bad(f"the stage {stage.name!r} with {stage.steps} steps", "a whole number of at least 1")
        outside = [i for i in (stage.start, *stage.close) if not 0 <= i < vocab_size]
        if outside:
            raise _bad(f"the token id {outside[0]} in the stage {stage.name!r}", f"ids from 0 to {vocab_size - 1}")
        early = {other.start for other in found} & set(stage.close[:-1])
        if early:
            raise _bad(
                f"the start id {min(early)} inside the close of the stage {stage.name!r}",
                "a start id at the end of close only: it opens its stage at once",
            )
    follows = forced_next(found)
    for number in range(len(found)):
        seen, at = {number}, follows[number]
        while at is not None:
            if at in seen:
                raise _bad(f"a close that forces the stage {found[at].name!r} again", "a chain of stages that ends")
            seen.add(at)
            at = follows[at]


def forced_next(found: Sequence[Stage]) -> list[int | None]:
    """For each stage the index of the stage that its close opens, None where it opens none."""
    index = {stage.start: number for number, stage in enumerate(found)}
    return [index.get(stage.close[-1]) if stage.close else None for stage in found]


def _read(entry: dict[str, Any]) -> Stage:
    """One entry of ``latent_stages``; an unknown or missing field is an error."""
    if not isinstance(entry, dict) or not {"name", "start", "steps"} <= set(entry) <= FIELDS:
        raise _bad(f"the stage {entry!r}", 'the fields "name", "start", "steps", and optionally "close" and "scale"')
    name, start, steps, close = entry["name"], entry["start"], entry["steps"], entry.get("close", [])
    if not isinstance(name, str) or not name:
        raise _bad(f"the stage name {name!r}", "a text")
    if not isinstance(close, list | tuple):
        raise _bad(f"the close {close!r} of the stage {name!r}", "a list of token ids")
    odd = [value for value in (start, steps, *close) if type(value) is not int]
    if odd:
        raise _bad(f"{odd[0]!r} in the stage {name!r}", "whole numbers for start, steps and close")
    scale = entry.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise _bad(f"the scale {scale!r} of the stage {name!r}", "a positive number")
    return Stage(name, start, steps, tuple(close), float(scale))


def _bad(given: str, needed: str) -> CheckpointError:
    return CheckpointError(
        f"config has {given}",
        needed=needed,
        cause="a config edited by hand, or a checkpoint of a newer version of prismlens",
        fix="correct latent_stages in config.json",
    )
