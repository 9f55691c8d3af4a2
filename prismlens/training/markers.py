"""Which control tokens open and close the stages of a latent block, for training and for the loop alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerFast

from prismlens.models import stages
from prismlens.models.processor import token_id
from prismlens.models.tokens import END, LATENT_END, STAGE_TOKENS, START
from prismlens.training.variants import Stage

FREE_TOKEN = STAGE_TOKENS["free_id"]
MARKERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        stages.LATENT: (START, END),
        **{
            name: (STAGE_TOKENS[f"{short}_start_id"], STAGE_TOKENS[f"{short}_end_id"])
            for name, short in ((stages.CONTEXT, "ctx"), (stages.FREE, "free"), (stages.TARGET, "tgt"))
        },
    }
)
"""Start and end marker of each stage. `LATENT_END` stands between a stage's last slot and its end marker, always."""


@dataclass(frozen=True)
class Opening:
    """One stage of latents: its name, the id that opens it, and the ids that follow its last slot.

    The ids of `close` run up to the start marker of the next stage of latents, free tokens included; those of the last
    stage end with its own end marker.
    """

    name: str
    start: int
    close: tuple[int, ...]


def openings(taught: Sequence[Stage], tokenizer: PreTrainedTokenizerFast) -> tuple[Opening, ...]:
    """The stages of latents with their markers, in order; none for a model without latents."""

    def ids(*tokens: str) -> tuple[int, ...]:
        return tuple(token_id(tokenizer, token) for token in tokens)

    out: list[Opening] = []
    for stage in taught:
        start, end = MARKERS[stage.name]
        if not stage.tokens:
            before = out.pop() if out else None
            if before is not None:
                out.append(Opening(before.name, before.start, (*before.close, *ids(start))))
            out.append(Opening(stage.name, ids(start)[0], ids(LATENT_END, end)))
        else:
            last = out.pop()
            free = ids(start, *[FREE_TOKEN] * stage.tokens, LATENT_END, end)
            out.append(Opening(last.name, last.start, (*last.close, *free)))
    return tuple(out)


def stage_config(
    taught: Sequence[Stage], opened: Sequence[Opening], latents: Sequence[int], *, forced: bool
) -> list[dict[str, Any]]:
    """The configuration's ``latent_stages``: each stage with its latents at test and what the loop forces after it."""
    return [
        {
            "name": stage.name,
            "start": marks.start,
            "steps": steps,
            "scale": stage.scale,
            "close": list(marks.close) if forced else [],
        }
        for stage, marks, steps in zip(taught, opened, latents, strict=True)
    ]
