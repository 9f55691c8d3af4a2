"""The numbers that are logged while a model trains are those of the diagnostics themselves."""

import pytest

import prismlens as pl
from prismlens.monitor import CONDITIONS, monitor

ITEMS = pl.load_items("shapes", n=24)


def test_the_numbers_are_those_of_the_diagnostics():
    model = pl.load("tiny/bottleneck")
    found = monitor(ITEMS, gap=False)(model)
    test = pl.corruption_test(model, ITEMS, conditions=CONDITIONS, on_missing="drop").frame()
    near = pl.alignment(model, ITEMS, on_missing="drop").frame()
    assert found["accuracy"] == test.loc["clean", "accuracy"]
    assert found["zero"] == test.loc["zero", "change"] < -0.3
    assert found["swap_follow"] == test.loc["swap", "follow"] > 0.5
    assert found["cosine_free_other"] == near.loc["free", "cosine_other"]
    assert found["cosine_forced"] == near.loc["teacher-forced", "cosine"]


def test_a_model_without_latents_has_an_accuracy_alone():
    model = pl.load("tiny/sft")
    run = model.generate(ITEMS)
    right = sum(choice == item.answer for choice, item in zip(run.choice, ITEMS, strict=True))
    assert monitor(ITEMS)(model) == {"accuracy": pytest.approx(right / len(ITEMS))}


def test_the_gap_is_there_where_it_is_asked_for():
    found = monitor(pl.load_items("shapes", n=80))(pl.load("tiny/lvr"))
    assert found["gap_low"] <= found["gap"] <= found["gap_high"]
