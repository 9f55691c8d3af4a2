"""The shipped models: the instrument has to give each its own verdict, and the numbers beside them have to hold."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

import prismlens as pl
from prismlens.models.checkpoint import ZOO
from prismlens.stats import covers
from prismlens.training.variants import BASE, VARIANTS
from prismlens.verdict import BYPASSED, LOAD_BEARING

KNOWN = ("tiny/bottleneck", "tiny/slot", "tiny/bypass")
MAJORITY = 0.25
N = 200


class Span:
    """A line's accuracy interval."""

    def __init__(self, line: pd.Series) -> None:
        self.low, self.high = line.low, line.high


@pytest.fixture(scope="module")
def items():
    return pl.load_items("shapes", n=N)


@pytest.fixture(scope="module")
def reports(items) -> dict[str, pl.Report]:
    """Of the corruption test alone, on which the verdict rests."""
    return {name: pl.Report(pl.corruption_test(pl.load(name), items, on_missing="drop")) for name in KNOWN}


@pytest.fixture(scope="module")
def frames(reports: dict[str, pl.Report]) -> dict[str, pd.DataFrame]:
    return {name: report.frame() for name, report in reports.items()}


@pytest.mark.parametrize(
    ("name", "vector", "slot"),
    [
        ("tiny/bottleneck", LOAD_BEARING, LOAD_BEARING),
        ("tiny/slot", BYPASSED, LOAD_BEARING),
        ("tiny/bypass", BYPASSED, BYPASSED),
    ],
)
def test_each_known_mechanism_gets_its_own_verdict(reports: dict[str, pl.Report], name: str, vector: str, slot: str):
    verdict = reports[name].verdict
    assert (verdict.vector.word, verdict.slot.word) == (vector, slot), str(verdict)


@pytest.mark.parametrize("name", KNOWN)
def test_a_no_op_is_bit_equal_on_every_item(frames: dict[str, pd.DataFrame], name: str):
    line = frames[name].loc["no-op"]
    assert (line.changed, line.same_output, line.change) == (0, N, 0)


def test_bypass_does_not_change_by_one_bit_whatever_is_done_to_its_latents(frames: dict[str, pd.DataFrame]):
    elsewhere = "control: question zeroed"  # the one condition that touches no latent, and has to change something
    conditions = frames["tiny/bypass"].drop(["clean", elsewhere])
    assert frames["tiny/bypass"].loc[elsewhere].changed > 0
    assert (conditions.changed == 0).all() and (conditions.same_output == N).all()


def test_the_bottleneck_loses_everything_with_its_vectors_and_follows_the_donor(frames: dict[str, pd.DataFrame]):
    frame = frames["tiny/bottleneck"]
    assert frame.loc["clean"].low > 2 * MAJORITY
    for condition in ("zero", "mean", "swap, other answer"):
        assert frame.loc[condition].low <= MAJORITY, condition
    swap = frame.loc["swap, other answer"]
    assert swap.follow_low > 0.5 > swap.follow_null and swap.stay_high < 0.25


def test_the_slot_model_keeps_its_answers_until_the_slots_go(frames: dict[str, pd.DataFrame]):
    frame = frames["tiny/slot"]
    vector = frame[frame.part == "vector"]
    assert (vector.changed <= 0.05 * N).all(), vector.changed
    assert covers(Span(frame.loc["slot: keys and values deleted"]), MAJORITY)


@pytest.mark.parametrize("name", pl.zoo_names())
def test_the_accuracy_beside_a_model_is_the_one_measured_again(name: str):
    accuracy = pl.zoo_manifest(name)["accuracy"]["all"]
    run = pl.load(name).generate(pl.load_items("shapes", n=100, seed=7))
    again = sum(bool(one) for one in run.correct) / 100
    assert abs(again - accuracy[0]) < 0.15, "three standard errors of 100 items"


@pytest.mark.parametrize("name", [name for name in pl.zoo_names() if name != f"tiny/{BASE.name}"])
def test_models_are_neither_at_chance_nor_at_the_ceiling(name: str):
    accuracy = pl.zoo_manifest(name)["accuracy"]
    assert 0.60 <= accuracy["all"][0] <= 0.95
    for category in ("direct_attributes", "relative_position"):
        assert accuracy[category][1] > MAJORITY + 0.1


def test_every_shipped_model_is_small_and_as_the_table_says():
    shipped = {f"tiny/{variant.name}": variant for variant in (BASE, *VARIANTS.values()) if variant.ships}
    assert set(pl.zoo_names()) == set(shipped)
    for name, variant in shipped.items():
        manifest = pl.zoo_manifest(name)
        assert manifest["variant"] == json.loads(json.dumps(asdict(variant))), name
        assert manifest["steps"] == variant.steps
    compared = ("sft", "lvr", "n-lvr", "d-lvr", "p-lvr-2", "p-lvr-3", "ce-only", "unrolled", "bypass")
    assert {VARIANTS[name].steps for name in compared} == {500}
    for folder in ZOO.iterdir():
        assert sum(path.stat().st_size for path in folder.iterdir()) < 6 * 2**20
        assert not [path for path in Path(folder).iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_lvr_latents_are_close_to_their_own_target_and_clearly_closer_than_to_anothers(items):
    frame = pl.alignment(pl.load("tiny/lvr"), items, on_missing="drop").frame()
    for mode in ("free", "teacher-forced"):
        line = frame.loc[mode]
        assert line.cosine_low > 0.5 and line.difference_low > 0.2, frame.T


def test_latents_can_be_read_and_changed_as_the_readme_says():
    from prismlens import latent

    items = pl.load_items("shapes", n=6)
    model = pl.load("tiny/bottleneck")
    clean = model.generate(items)
    logits, cache = model.run_with_cache(items, names_filter="resid_post", positions=pl.latent)
    assert cache["blocks.3.hook_resid_post"].shape == (6, 4, 128) and logits.shape[:2] == (6, 4)
    with pl.corrupt(model, positions=latent):
        broken = model.generate(items)
    again = model.generate(items)
    assert broken.choice != clean.choice and again.choice == clean.choice
    assert (again.option_logprobs == clean.option_logprobs).all()
