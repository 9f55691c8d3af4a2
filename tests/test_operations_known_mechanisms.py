"""Every operation on the models whose mechanism is known: each gives the verdict that the model's construction dictates.

A row of `ROWS` is an operation at one place. An operation without a row fails `test_every_operation_has_a_row`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import prismlens as pl
from prismlens.interventions import (
    Constant,
    Cut,
    DeleteKV,
    Edit,
    Identity,
    Mean,
    Noise,
    Operation,
    Oracle,
    Patch,
    Project,
    Repeat,
    Scale,
    Shuffle,
    Skip,
    Source,
    Steer,
    Structural,
    Swap,
    Zero,
)
from prismlens.interventions.edit_json import OPERATIONS
from prismlens.positions import answer, latent
from prismlens.trace import PrismModel, Run

ITEMS = pl.load_items("shapes", n=16)
VECTOR, KV, STRUCTURE = "hook_latent", "kv", "structure"
SAME, KEPT, LOST, PARTLY = "same", "kept", "lost", "partly"
"""Bit for bit the clean output; accuracy within .1 of the clean one; at least .3 below it; below it, above zeros."""
GENERATOR = torch.Generator().manual_seed(0)
UNIT = torch.nn.functional.normalize(torch.randn(128, generator=GENERATOR), dim=0)
EIGHT = torch.randn(8, 128, generator=GENERATOR)


@dataclass(frozen=True)
class Row:
    """An operation at a place, and what becomes of tiny/bottleneck and tiny/slot; tiny/bypass has to stay the same."""

    op: Callable[[str], Operation | Structural]
    place: str
    bottleneck: str
    slot: str
    bypass: str = SAME


def gone(op: Callable[[str], Operation]) -> list[Row]:
    """What takes the item's own values away: fatal at the vector where the vector is used, fatal at the slot in both."""
    return [Row(op, VECTOR, LOST, KEPT), Row(op, KV, LOST, LOST)]


def kept(op: Callable[[str], Operation]) -> list[Row]:
    """What leaves all or most of the item's own values somewhere among its latents, which say the same four times."""
    return [Row(op, VECTOR, KEPT, KEPT), Row(op, KV, KEPT, KEPT)]


ROWS = [
    *(Row(lambda model: Identity(), place, SAME, SAME) for place in (VECTOR, KV)),
    *gone(lambda model: Zero()),
    *gone(lambda model: Mean()),
    *gone(lambda model: Noise(1.0, "std", pure=True)),
    Row(lambda model: Noise(3.0, "std"), VECTOR, LOST, KEPT),
    Row(lambda model: Noise(3.0, "norm"), KV, LOST, LOST),
    *gone(lambda model: Swap(donor="different-answer")),
    *gone(lambda model: Scale(0.0)),
    Row(lambda model: Constant(12 * UNIT), VECTOR, LOST, KEPT),
    Row(lambda model: Constant(12 * UNIT[:64]), KV, LOST, LOST),
    Row(lambda model: Steer(UNIT, 20.0), VECTOR, LOST, KEPT),
    Row(lambda model: Steer(UNIT[:64], 60.0), KV, LOST, LOST),
    Row(lambda model: Project(EIGHT, "subspace"), VECTOR, LOST, KEPT),
    Row(lambda model: Project(EIGHT[:, :64], "subspace"), KV, LOST, LOST),
    Row(lambda model: Patch(other_pictures(model, VECTOR)), VECTOR, LOST, KEPT),
    Row(lambda model: Patch(other_pictures(model, KV)), KV, LOST, LOST),
    *kept(lambda model: Shuffle()),
    *kept(lambda model: Repeat()),
    Row(lambda model: Oracle(), VECTOR, PARTLY, KEPT),
    Row(lambda model: DeleteKV(), STRUCTURE, LOST, LOST),
    Row(lambda model: Cut(to=latent, by=answer), STRUCTURE, LOST, LOST),
    Row(lambda model: Cut(to=latent, by=answer, layers=(0,)), STRUCTURE, LOST, KEPT),
    Row(lambda model: Cut(to=latent, by=answer, layers=(1, 2, 3)), STRUCTURE, SAME, LOST),
    Row(lambda model: Skip(4), STRUCTURE, LOST, LOST),
]


@cache
def model_of(name: str) -> PrismModel:
    return pl.load(f"tiny/{name}")


@cache
def clean(name: str) -> Run:
    return model_of(name).generate(ITEMS)


@cache
def other_pictures(name: str, place: str) -> Source:
    """What the model has at its latents for the items' questions and another scene's picture."""
    moved = [replace(item, image=other.image) for item, other in zip(ITEMS, ITEMS[5:] + ITEMS[:5], strict=True)]
    run = model_of(name).generate(moved)
    if place == VECTOR:
        return Source.latents("other pictures", run.unrolled)
    names = ["attn.hook_k", "attn.hook_v"]
    return Source.activations(
        "other pictures", model_of(name).run_with_cache(moved, names, positions=latent, run=run)[1]
    )


def edited(name: str, *edits: Edit) -> Run:
    return model_of(name).edited(*edits).generate(ITEMS, reference=clean(name))


def accuracy(run: Run) -> float:
    return sum(map(bool, run.correct)) / len(ITEMS)


def same_output(run: Run, other: Run) -> bool:
    return run.text == other.text and torch.equal(run.option_logprobs, other.option_logprobs)


def verdict_holds(verdict: str, name: str, run: Run) -> bool:
    before, after = accuracy(clean(name)), accuracy(run)
    holds = {
        SAME: same_output(run, clean(name)),
        KEPT: after >= before - 0.1,
        LOST: after <= before - 0.3,
        PARTLY: accuracy(edited(name, Edit(Zero()))) + 0.15 <= after <= before - 0.15,
    }
    return holds[verdict]


def label(value: object) -> str:
    """The operation, as a test's name."""
    return f"{type(value.op('bypass')).__name__}-{value.place}" if isinstance(value, Row) else str(value)


@pytest.mark.parametrize("name", ["bypass", "slot", "bottleneck"])
@pytest.mark.parametrize("row", ROWS, ids=label)
def test_each_operation_gives_the_verdict_of_the_construction(row: Row, name: str) -> None:
    site = VECTOR if row.place == STRUCTURE else row.place
    run = edited(name, Edit(row.op(name), site=site))
    expected = getattr(row, name)
    assert verdict_holds(expected, name, run), (expected, accuracy(run), accuracy(clean(name)))


def test_every_operation_has_a_row() -> None:
    places: dict[str, set[str]] = {}
    for row in ROWS:
        places.setdefault(type(row.op("bypass")).__name__, set()).add(row.place)
    assert set(places) == set(OPERATIONS), "a new operation needs its verdicts"
    for name, found in places.items():
        structural = issubclass(OPERATIONS[name], Structural)
        wanted = {STRUCTURE} if structural else {VECTOR} if name == "Oracle" else {VECTOR, KV}
        assert found == wanted, name


def test_own_latents_restore_the_bottleneck_after_zeros() -> None:
    own = Edit(Patch(Source.latents("own", clean("bottleneck").unrolled)))
    assert verdict_holds(LOST, "bottleneck", edited("bottleneck", Edit(Zero())))
    assert same_output(edited("bottleneck", Edit(Zero()), own), clean("bottleneck"))
    assert not same_output(edited("bottleneck", own, Edit(Zero())), clean("bottleneck")), "the order is the one given"


def test_the_answer_follows_the_donor_where_the_vector_is_used() -> None:
    options = {item.id: item for item in ITEMS}
    for name, least, most in (("bottleneck", 0.7, 1.0), ("slot", 0.0, 0.15), ("bypass", 0.0, 0.15)):
        run = edited(name, Edit(Swap(donor="answer-in-options")))
        chosen = [None if c is None else i.options["ABCD".index(c)] for i, c in zip(ITEMS, run.choice, strict=True)]
        follow = [options[run.donors[0][i.id]].content == c for i, c in zip(ITEMS, chosen, strict=True)]
        assert least <= sum(follow) / len(follow) <= most, name


def test_moving_what_follows_is_not_a_fact_about_latents() -> None:
    """Where nothing reads the latents, skipping them changes nothing, unless positions move: then the model breaks."""
    assert same_output(edited("bypass", Edit(Skip(4))), clean("bypass"))
    assert verdict_holds(LOST, "bypass", edited("bypass", Edit(Skip(4, keep_positions=False))))


def test_cutting_the_answer_from_the_latents_is_deleting_their_keys_and_values() -> None:
    cut, deleted = (edited("lvr", Edit(op)) for op in (Cut(to=latent, by=answer), DeleteKV()))
    assert same_output(cut, deleted) and not same_output(cut, clean("lvr"))
    every = edited(
        "lvr", Edit(Cut(to=latent, by=answer, heads=tuple(range(model_of("lvr").hf.config.text.num_attention_heads))))
    )
    assert torch.allclose(every.option_logprobs, cut.option_logprobs, atol=1e-5)
