"""The numbers of a run: what is refused, what is written down, and the learning rate at every step."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlens.errors import SettingError
from prismlens.training.protocol import PAPER
from prismlens.training.schedule import rate
from prismlens.training.settings import PAPER_RUN, RUNS, TINY_RUN, TrainSettings
from prismlens.training.variants import BASE, VARIANTS, Phase, Variant


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["latent_steps", "batch", "accumulate", "pack_items", "pack_tokens", "save_every"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_counts_are_whole_numbers_of_at_least_one(name: str, value: object):
    with pytest.raises(SettingError, match=rf"^{name} = {value}\n  needed: a whole number of at least 1"):
        TrainSettings(**{name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("steps", 0, "a whole number of at least 1"),
        ("log_every", 0, "a whole number of at least 1"),
        ("lora", -1, "a whole number of at least 0"),
        ("seed", -1, "a whole number of at least 0"),
        ("seed", 1.5, "a whole number of at least 0"),
        *((name, value, "a finite number of at least 0") for name in ("lam", "lr", "weight_decay", "clip", "facts")
          for value in (-0.1, math.nan, math.inf)),
        *((name, value, "a number from 0 to below 1") for name in ("warm_up", "beta2")
          for value in (-0.1, 1.0, math.nan)),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused_by_name(name: str, value: object, needed: str):
    with pytest.raises(SettingError, match=rf"^{name} = {value}\n  needed: {needed}"):
        TrainSettings(**{name: value})


def test_micro_batches_have_equal_sizes():
    with pytest.raises(SettingError, match="batch = 64 in 3 micro-batches"):
        TrainSettings(accumulate=3)
    assert TrainSettings(accumulate=4).accumulate == 4


def test_the_papers_run_is_the_published_one():
    published = {
        "steps": 2500, "lam": 0.1, "lr": 1e-5, "warm_up": 0.03, "weight_decay": 0.1, "clip": 1.0, "batch": 64,
        "pack_items": 4, "pack_tokens": 16384, "seed": 42, "latent_steps": 8, "facts": 0.0, "bf16": True,
    }  # fmt: skip
    assert {name: getattr(PAPER_RUN, name) for name in published} == published
    assert dict(RUNS) == {"paper": PAPER_RUN, "tiny": TINY_RUN}


def test_settings_as_json_hold_every_field_and_the_protocols():
    written = json.loads(json.dumps(replace(PAPER_RUN, protocol=PAPER).as_dict()))
    assert written["protocol"] == {
        "align_mean": "published", "text_mean": "pack", "slots": "box", "budget": "published", "markers": "decoded",
        "alignment_items": "training",
    }  # fmt: skip
    protocol = written.pop("protocol")
    assert replace(TrainSettings(), **written, protocol=type(PAPER)(**protocol)) == replace(PAPER_RUN, protocol=PAPER)


def rates(variant: Variant, warm_up: float) -> list[float]:
    return [rate(variant, warm_up, step) for step in range(variant.steps + 1)]


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine_to_zero():
    # 8 steps, of which ceil(0.2 * 8) = 2 warm up; then 6 of cosine: shares 0, 1/6, 2/6, ...
    by_hand = [0, 1 / 2, *(0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)), 0]
    assert rates(Variant("a", "", (Phase(8),)), 0.2) == pytest.approx(by_hand)
    assert by_hand[2] == 1 and by_hand[5] == pytest.approx(0.5)


def test_without_warm_up_the_first_step_is_the_peak():
    assert rates(Variant("a", "", (Phase(2),)), 0.0) == pytest.approx([1, 0.5, 0])


def test_a_restart_begins_a_new_schedule_and_other_phases_go_on_under_the_old():
    two = Variant("a", "", (Phase(4), Phase(4, lr=0.5, restart=True)))
    one = [0, 1, 0.5 * (1 + math.cos(math.pi / 3)), 0.5 * (1 + math.cos(2 * math.pi / 3))]
    assert rates(two, 0.25) == pytest.approx([*one, *(0.5 * value for value in one), 0])
    joined = Variant("a", "", (Phase(5), Phase(3, lr=0.5)))
    whole = rates(Variant("a", "", (Phase(8),)), 0.25)
    assert rates(joined, 0.25) == pytest.approx([*whole[:5], *(0.5 * value for value in whole[5:])])


def test_phases_after_a_restart_share_its_schedule():
    three = Variant("a", "", (Phase(2), Phase(3, restart=True), Phase(3)))
    assert rates(three, 0.25)[2:] == pytest.approx(rates(Variant("a", "", (Phase(6),)), 0.25))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([BASE, *VARIANTS.values()]), st.floats(0, 0.9), st.integers(3, 60))
def test_the_rate_is_a_share_of_the_peak_and_nothing_after_the_end(variant: Variant, warm_up: float, steps: int):
    scaled = variant.scaled(steps)
    found = rates(scaled, warm_up)
    assert all(0 <= value <= max(phase.lr for phase in variant.phases) for value in found)
    assert found[-1] == 0 and rate(scaled, warm_up, 10**6) == 0
