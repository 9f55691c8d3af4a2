"""The stages of a run as tensors, for rows that stand in different stages; knows no model and no sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prismlens.models.stages import FREE, Stage, forced_next

NEVER = -1
"""Stands where there is no stage and no id: no token has it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What each stage is, looked up by the stage that a row is in.

    Args:
        names: the stages' names, then perhaps ``"free"``.
        n_stages: how many of `names` are stages of latents.
        free_id: the free token's id, `NEVER` without one.
        starts: the id that opens each stage.
        steps: latents in each stage.
        gaps: positions that stay free after each stage's last latent.
        close: ids forced after each stage, padded with `NEVER`.
        n_close: how many they are.
        leads: whether the last of them opens another stage.
        later: positions of each name that are sure to come once a stage's latents are over.
        placed: how many free tokens the first ids of `close` hold, by their number.
    """

    names: tuple[str, ...]
    n_stages: int
    free_id: int
    starts: Int[Tensor, " stage"]
    steps: Int[Tensor, " stage"]
    gaps: Int[Tensor, " stage"]
    close: Int[Tensor, "stage forced"]
    n_close: Int[Tensor, " stage"]
    leads: Bool[Tensor, " stage"]
    later: Int[Tensor, "stage name"]
    placed: Int[Tensor, "stage count"]

    def opened_by(self, ids: Int[Tensor, " batch"]) -> tuple[Bool[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Whether each id opens a stage, and which one (0 where it opens none)."""
        match = ids[:, None] == self.starts
        return match.any(1), match.long().argmax(1)

    def forced(self, stage: Int[Tensor, " batch"], number: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The forced id of that number after each row's stage; any id where there are not so many."""
        return self.close[stage, number.clamp(max=self.close.shape[1] - 1)]


def plan(
    names: Sequence[str], stages: Sequence[Stage], free_id: int | None, *, fixed: bool, device: torch.device
) -> Plan:
    """The stages as tensors.

    Args:
        names: the stages' names, then perhaps ``"free"``.
        stages: may be empty: then nothing ever opens.
        free_id: the free token's id.
        fixed: every stage takes all its steps; else only the first latent of a forced stage is sure to come.
        device: where the rows are.
    """
    known = list(stages) or [Stage("", NEVER, 0)]
    follows = forced_next(known) if stages else [None]
    width = max(1, *(len(stage.close) for stage in known))
    close = torch.full((len(known), width), NEVER)
    for number, stage in enumerate(known):
        close[number, : len(stage.close)] = torch.tensor(stage.close, dtype=torch.long)
    free = (close == (NEVER - 1 if free_id is None else free_id)).long()
    later = torch.zeros(len(known), len(names), dtype=torch.long)
    for number in range(len(known)):
        at = number
        while (after := follows[at]) is not None:
            if FREE in names:
                later[number, list(names).index(FREE)] += free[at].sum()
            later[number, after] += known[after].steps if fixed else min(1, known[after].steps)
            at = after
    moved = {
        "starts": torch.tensor([stage.start for stage in known]),
        "steps": torch.tensor([stage.steps for stage in known]),
        "gaps": torch.tensor([stage.gap for stage in known]),
        "close": close,
        "n_close": torch.tensor([len(stage.close) for stage in known]),
        "leads": torch.tensor([after is not None for after in follows]),
        "later": later,
        "placed": torch.cat((torch.zeros(len(known), 1, dtype=torch.long), free.cumsum(1)), 1),
    }
    at_device = {name: tensor.to(device) for name, tensor in moved.items()}
    return Plan(tuple(names), len(stages), NEVER if free_id is None else free_id, **at_device)
