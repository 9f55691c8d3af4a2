"""The roles of one named stage of a latent block: its positions, what becomes them, what follows; knows no others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prismlens.errors import RoleError
from prismlens.positions.role import Role
from prismlens.unrolled import Unrolled


@dataclass(frozen=True, repr=False)
class Stage(Role):
    """The latents of a named stage, or the free tokens; an index is a step within the stage."""

    name: str

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """True at the stage's positions.

        Raises:
            RoleError: the model has no stage of that name.
        """
        return unrolled.stages == _number(self, self.name, unrolled)

    def order(self, unrolled: Unrolled) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """The steps within the stage, and how many each row has (also while only some of its columns are there)."""
        number, count = super().order(unrolled)
        planned = unrolled.n_staged
        return number, count if planned is None else planned[:, _number(self, self.name, unrolled)]

    def why(self, unrolled: Unrolled, row: int) -> str:
        """What the row lacks."""
        return f"{self}: this item has no such stage"

    @property
    def source(self) -> Role:
        """The positions p - 1 whose final state becomes the stage's latent at p; an index is that latent's step."""
        return StageSource(self)

    @property
    def end(self) -> Role:
        """The position after the stage's last one."""
        return StageEnd(self)

    def __str__(self) -> str:
        return f"latent.stage({self.name!r})"


@dataclass(frozen=True, repr=False)
class StageSource(Role):
    """The positions whose final state becomes a latent of the stage, numbered by the step of that latent."""

    stage: Stage

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """The positions before those of the stage.

        Raises:
            RoleError: the model has no such stage, or its positions are tokens.
        """
        inside = self.stage.mask(unrolled)
        if bool((inside & (unrolled.steps < 0)).any()):
            raise RoleError(
                f"the role {self} was asked for",
                needed="a stage of latents",
                cause="free tokens are embedded as any token: no state is fed back as one",
                fix=f"use {self.stage}",
            )
        return before(inside) & unrolled.valid

    def order(self, unrolled: Unrolled) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """The step of the latent that each position produces, and how many latents of the stage each row has."""
        number, count = self.stage.order(unrolled)
        moved = torch.full_like(number, -1)
        moved[:, :-1] = number[:, 1:]
        return torch.where(self.mask(unrolled), moved, -1), count

    def why(self, unrolled: Unrolled, row: int) -> str:
        """What the row lacks."""
        return f"{self}: this item has no such stage"

    def __str__(self) -> str:
        return f"{self.stage}.source"


@dataclass(frozen=True, repr=False)
class StageEnd(Role):
    """The position after the last one of a stage."""

    stage: Stage

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """One position a row, none where the stage is absent or not over yet."""
        number, count = self.stage.order(unrolled)
        return after((number >= 0) & (number == count[:, None] - 1)) & unrolled.valid

    def why(self, unrolled: Unrolled, row: int) -> str:
        """What the row lacks."""
        n = int(self.stage.mask(unrolled)[row].sum())
        return f"{self}: " + (f"nothing follows its {n} positions" if n else "this item has no such stage")

    def __str__(self) -> str:
        return f"{self.stage}.end"


def before(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The positions one column before those of a mask."""
    moved = torch.zeros_like(mask)
    moved[:, :-1] = mask[:, 1:]
    return moved


def after(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The positions one column after those of a mask."""
    moved = torch.zeros_like(mask)
    moved[:, 1:] = mask[:, :-1]
    return moved


def _number(role: Role, name: str, unrolled: Unrolled) -> int:
    """The index of a stage's name.

    Raises:
        RoleError: the model has no stage of that name.
    """
    if name in unrolled.stage_names:
        return unrolled.stage_names.index(name)
    available = ", ".join(map(repr, unrolled.stage_names)) or "none"
    raise RoleError(
        f"the role {role} was asked for; available stages: {available}",
        needed="a stage that this model has",
        cause="a misspelt name, or a model whose latent block has other stages",
        fix="use latent, or latent[i] for one step",
    )
