"""The table of variants: its phases under another number of steps, what the paper's variants are, what is refused."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlens.errors import CheckpointError, RoleError, SettingError
from prismlens.models.heads import HEADS
from prismlens.training.markers import MARKERS
from prismlens.training.variants import BASE, CONTEXT, FREE, INPUTS, STAGES, TARGET, VARIANTS, Phase, Stage, Variant


def test_the_papers_variants_are_as_published():
    lvr = VARIANTS["lvr"]
    assert lvr.stages == (Stage("latent"),) and not (lvr.noise or lvr.diversity or lvr.switch or lvr.visibility)
    assert replace(lvr, noise=0.3, name="n-lvr", mechanism="") == replace(VARIANTS["n-lvr"], mechanism="")
    assert [(p.steps, p.lam, p.inputs) for p in VARIANTS["d-lvr"].scaled(2500).phases] == [
        (1500, 1.0, "target"), (1000, 0.0, "target"),
    ]  # fmt: skip
    assert not VARIANTS["d-lvr"].phases[1].restart, "the schedule goes on"
    assert VARIANTS["p-lvr-2"].stages == (Stage("context", scale=1.5), Stage("target"))
    three = VARIANTS["p-lvr-3"]
    assert three.stages == (Stage("context", scale=1.5), Stage("free", tokens=6), Stage("target"))
    assert three.diversity == 0.01 and three.latent_stages == (CONTEXT, TARGET)
    assert VARIANTS["sft"].stages == () == VARIANTS["sft"].latent_stages


def test_names_are_keys_and_start_from_models_that_are_built_before():
    assert all(name == variant.name for name, variant in VARIANTS.items())
    known = [BASE.name]
    for variant in VARIANTS.values():
        assert variant.parent in known
        known.append(variant.name)


def test_every_stage_has_its_markers():
    assert set(STAGES) == set(MARKERS)


def test_the_phase_of_a_step():
    variant = Variant("a", "", (Phase(2), Phase(3), Phase(1)))
    assert [variant.phase_at(step) for step in range(6)] == [0, 0, 1, 1, 1, 2]
    for step in (-1, 6):
        with pytest.raises(SettingError, match=f"step {step} of 'a'\n  needed: a step from 0 to 5"):
            variant.phase_at(step)


def test_scaling_keeps_shares():
    variant = Variant("a", "", (Phase(300), Phase(200, lam=0.0), Phase(500, lr=0.5)))
    scaled = variant.scaled(20)
    assert [phase.steps for phase in scaled.phases] == [6, 4, 10]
    assert replace(scaled, phases=variant.phases) == variant
    assert [replace(p, steps=1) for p in scaled.phases] == [replace(p, steps=1) for p in variant.phases]
    assert variant.scaled(1000) == variant


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=7), st.integers(0, 200))
def test_scaling_gives_the_total_at_least_a_step_a_phase_and_each_its_share(lengths: list[int], more: int):
    variant = Variant("a", "", tuple(map(Phase, lengths)))
    steps = len(lengths) + more
    scaled = [phase.steps for phase in variant.scaled(steps).phases]
    assert sum(scaled) == steps and min(scaled) >= 1
    shares = [steps * length / sum(lengths) for length in lengths]
    if min(shares) >= 1:
        assert all(abs(n - share) <= 1 for n, share in zip(scaled, shares, strict=True))


def test_two_long_phases_both_give_way_to_short_ones():
    variant = Variant("a", "", (Phase(500), Phase(500), *[Phase(1)] * 4))
    assert [phase.steps for phase in variant.scaled(6).phases] == [1] * 6


def test_fewer_steps_than_phases_are_refused():
    with pytest.raises(SettingError, match="2 steps for the 3 phases of 'a'"):
        Variant("a", "", (Phase(1), Phase(1), Phase(1))).scaled(2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"align": "l1"}, "variant 'a' has align = 'l1'\n  needed: mse or cosine"),
        ({"target": "image"}, "has target = 'image'\n  needed: box or other"),
        ({"head": "glu"}, f"has head = 'glu'\n  needed: {' or '.join(HEADS)}"),
        ({"phases": ()}, "has no phases"),
        ({"stages": (TARGET, TARGET)}, "names a stage twice"),
        ({"stages": (FREE, TARGET)}, "begins or ends with free tokens"),
        ({"stages": (CONTEXT, FREE)}, "begins or ends with free tokens"),
        ({"stages": (TARGET,)}, "has the stage 'target' alone"),
        ({"batch": 0}, "has batch = 0"),
        *(({name: value}, f"has {name} = {value}") for name in ("noise", "diversity", "switch")
          for value in (-0.1, math.nan, math.inf)),
        ({"visibility": ({"query": "answer", "key": "latent[0]"},)}, r"a visibility rule for 'latent\[0\]'"),
        ({"visibility": ({"query": "latent.stage('target').source", "key": "image"},)}, "several items share a row"),
        ({"visibility": ({"query": "answer", "key": "image - image.box"},)}, "'image - image.box'"),
        ({"visibility": ({"query": "~answer.first", "key": "image"},)}, "'~answer.first'"),
    ],
)  # fmt: skip
def test_bad_variants_are_refused(fields: dict, message: str):
    with pytest.raises(SettingError, match=message):
        Variant("a", "", **fields)


def test_rules_that_every_column_can_read_off_itself_are_taken():
    rule = {"query": "answer | between", "key": "~image - latent.stage('free')", "layers": [0]}
    assert Variant("a", "", visibility=(rule,)).visibility == (rule,)
    with pytest.raises(CheckpointError, match="visibility rule"):
        Variant("a", "", visibility=({"query": "answer"},))
    with pytest.raises(RoleError, match="imagge"):
        Variant("a", "", visibility=({"query": "answer", "key": "imagge"},))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": "zeros"}, f"inputs = 'zeros'\n  needed: one of {', '.join(INPUTS)}"),
        ({"steps": 0}, "a phase of 0 steps"),
        ({"steps": 2.0}, "a phase of 2.0 steps"),
        *(({name: value}, f"a phase with {name} = {value}") for name in ("lam", "words", "lr")
          for value in (-1.0, math.nan)),
    ],
)  # fmt: skip
def test_bad_phases_are_refused(fields: dict, message: str):
    with pytest.raises(SettingError, match=message):
        Phase(**{"steps": 1} | fields)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("tgt", {}, "a stage called 'tgt'\n  needed: one of latent, context, free, target"),
        ("target", {"scale": 0.0}, "stage 'target' has scale = 0.0"),
        ("target", {"scale": math.nan}, "stage 'target' has scale = nan"),
        ("free", {"tokens": -1}, "stage 'free' has -1 tokens"),
        ("free", {}, "stage 'free' has 0 tokens"),
        ("target", {"tokens": 2}, "stage 'target' has 2 tokens"),
    ],
)
def test_bad_stages_are_refused(name: str, fields: dict, message: str):
    with pytest.raises(SettingError, match=message):
        Stage(name, **fields)
