"""The conditions and controls of a corruption test, and what each of them asks, read off its edits; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prismlens.interventions import Cut, DeleteKV, Edit, Identity, Mean, Noise, Structural, Swap, Zero
from prismlens.positions import latent, question, template
from prismlens.positions.role import Index
from prismlens.sites import LATENT

VECTOR, SLOT, ELSEWHERE, CONTROL = "vector", "slot", "elsewhere", "control"
"""What a condition breaks: the vectors that are fed back, anything else about latents, other positions, or nothing."""
REMOVES = (Zero, Mean, Swap, DeleteKV, Cut)
"""Operations that can take away all that is particular to the item; the others (noise, scaling) leave some of it."""


def default_conditions(seed: int) -> dict[str, tuple[Edit, ...]]:
    """The conditions of `corruption_test`, by name; what each asks stands with its operation."""

    def one(op: Any, **where: Any) -> tuple[Edit, ...]:
        return (Edit(op, seed=seed, **where),)

    return {
        "no-op": one(Identity()),
        "zero": one(Zero()),
        "mean": one(Mean()),
        "noise 1 std": one(Noise(1.0, unit="std")),
        "noise 3 std": one(Noise(3.0, unit="std")),
        "noise 3 std, held": one(Noise(3.0, unit="std"), mode="held"),
        "noise norm-matched": one(Noise(1.0, unit="norm")),
        "swap": one(Swap()),
        "swap, other answer": one(Swap(donor="answer-in-options")),
        "slot: zero keys and values": one(Zero(), site="kv"),
        "slot: swap keys and values": one(Swap(), site="kv"),
        "slot: keys and values deleted": one(DeleteKV()),
    }


def default_controls(seed: int, steps: int) -> dict[str, tuple[Edit, ...]]:
    """What stands beside the conditions and is not judged; beside "no-op", which is among `default_conditions`.

    - self-donor: an item's own latents are swapped in. The whole machinery of donors runs, and nothing may change, bit
      for bit.
    - slot self-donor: the same with keys and values, which are read in a replay: equal up to rounding, so that hardly
      an answer may change.
    - random direction: a vector of the latent's own norm in a random direction. A swap that does no more than this has
      shown that the vector matters, not what is in it.
    - question zeroed: the same zeros, at the embeddings of as many of the last positions of the question (and of the
      template before it, where the question is shorter). An instrument that moves nothing here either is broken; a
      loss that is as large as this one is a large one.

    Args:
        seed: of the edits.
        steps: latents in a block.
    """
    own = Swap(donor="self", image="any")
    asked = (template | question)[-steps:]
    edits = {
        "self-donor": Edit(own, seed=seed),
        "slot self-donor": Edit(own, site="kv", seed=seed),
        "random direction": Edit(Noise(1.0, unit="norm", pure=True), seed=seed),
        "question zeroed": Edit(Zero(), positions=asked, site="hook_embed", seed=seed),
    }
    return {f"control: {name}": (edit,) for name, edit in edits.items()}


def puts_back(edit: Edit) -> bool:
    """Whether an edit puts back what was there."""
    return isinstance(edit.op, Identity) or (isinstance(edit.op, Swap) and edit.op.donor == "self")


def bit_equal(edits: Sequence[Edit]) -> bool:
    """Whether not a bit of the output may differ from the clean run's.

    Other sites' clean values are read in a replay of the finished sequence, which agrees with the run that decoded it
    up to rounding: a self-donor there is no exact control.
    """
    return all(puts_back(edit) and (isinstance(edit.op, Identity) or edit.site == LATENT) for edit in edits)


def part_of(edits: Sequence[Edit]) -> str:
    """Which question a condition answers, read off its edits: control, vector, slot, or elsewhere (not judged)."""
    if all(map(puts_back, edits)):
        return CONTROL
    broken = [edit.op.to if isinstance(edit.op, Cut) else edit.positions for edit in edits]
    if not all(role == latent or (isinstance(role, Index) and role.role == latent) for role in broken):
        return ELSEWHERE
    return VECTOR if all(edit.site == LATENT and not isinstance(edit.op, Structural) for edit in edits) else SLOT


def removes(edits: Sequence[Edit]) -> bool:
    """Whether a condition takes away all that is particular to the item, at every latent."""
    return any(
        isinstance(edit.op, REMOVES)
        and (edit.op.to if isinstance(edit.op, Cut) else edit.positions) == latent
        and getattr(edit.op, "layers", None) is None
        and getattr(edit.op, "donor", "") not in ("same-answer", "self")
        for edit in edits
    )
