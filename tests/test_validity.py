"""The validity page is what its records say, its records are whole, and mixtures need their latents where planted."""

import sys
from pathlib import Path

import pytest
import torch

import prismlens as pl

HERE = Path(__file__).parents[1] / "benchmarks" / "validity"
sys.path.insert(0, str(HERE))

import known  # noqa: E402
import mixtures  # noqa: E402
import readings  # noqa: E402
import records  # noqa: E402
import run  # noqa: E402
import simulations  # noqa: E402
import table  # noqa: E402

ALL = {
    name: one
    for kind in ("mechanism", "mixture", "routed", "sanity", "simulation")
    for name, one in records.read(kind).items()
}


def test_the_page_and_the_readme_are_what_the_records_say():
    assert table.PAGE.read_text() == table.page()
    assert table.brief() in table.README.read_text()


def test_every_record_is_there_or_named_as_missing_and_says_what_made_it():
    made, wanted = set(ALL), set(run.jobs())
    assert made <= wanted
    assert all(name in table.page() for name in wanted - made)
    assert all(one["version"] and one["code"] for one in ALL.values())


@pytest.mark.parametrize("name", ["mechanism-slot-11", "mixture-0-050", "sanity-labels"])
def test_what_a_record_says_follows_from_its_rows(name):
    record, rows = ALL[name], records.rows(name)
    assert record["fair"] == readings.fair(record, rows) and record["paper"] == readings.published(record, rows)
    assert rows.groupby("condition").size().max() == record["n"] == known.N


def test_other_rows_give_another_verdict():
    name = "mechanism-bottleneck-11"
    rows = records.rows(name)
    rows["correct"] = rows.item.map(rows[rows.condition == "clean"].set_index("item").correct)
    said = readings.fair(ALL[name], rows)["said"]
    assert ALL[name]["fair"]["said"] == ["load-bearing", "load-bearing"] and said == ["bypassed", "bypassed"]


def test_a_rate_beyond_its_interval_does_not_hold():
    line = {"stated": 0.05, "low": 0.06, "high": 0.08}
    assert [table.holds({**line, "kind": kind}) for kind in ("null", "exact", "power")] == [False, False, True]


def test_the_power_of_the_sign_test():
    # 9 changes, all losses: found where at most one of them is a gain, (.5^9 * 10 * 2 = .039).
    assert simulations.power(-1.0, noise=0.0, n=9) == pytest.approx(1.0, abs=1e-3)
    assert simulations.power(0.0) < 0.05 < simulations.power(-0.02) < simulations.power(-0.05)


def test_a_mixture_needs_its_vectors_in_the_planted_items_alone():
    """True of any weights, so the shipped ones serve: where the latents are hidden, zeros change not one bit."""
    model, items = pl.load("tiny/bottleneck", batch_size=40), known.rendered(3, 40)
    model.hf.config.visibility = list(mixtures.rules(0.5))
    needs = torch.tensor(mixtures.planted(model, items, 0.5))
    clean, zeroed = model.generate(items), pl.corrupt(model, positions=pl.latent).generate(items)
    same = (clean.option_logprobs == zeroed.option_logprobs).all(1)
    assert 10 <= int(needs.sum()) <= 30
    assert bool((same == ~needs).all())
