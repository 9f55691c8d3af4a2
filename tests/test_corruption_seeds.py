"""Several seeds as a random effect, controls that must hold, and what follows where they do not."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prismlens.corruption import CorruptionTest, corruption_test, default_controls
from prismlens.data.shapes import shapes
from prismlens.errors import DonorError, EditError, SettingError
from prismlens.experiment import CLEAN, run_conditions
from prismlens.interventions import Edit, Identity, Noise, Swap, Zero, match_donors
from prismlens.positions import question
from prismlens.results import Results
from prismlens.stats import crossed_mean, paired_difference
from prismlens.table import render
from prismlens.verdict import UNDECIDED, judge
from tests.plain_hooks import twins

# --- the mean over items and seeds ------------------------------------------------------------------------------------


def test_without_a_difference_between_seeds_it_is_the_clustered_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    same = crossed_mean(np.stack([values] * 3), range(12))
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (same.estimate, same.low, same.high) == pytest.approx((values.mean(), low, high))
    assert same.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue) and same.seed_sd == pytest.approx(0)
    sides = [
        stats.ttest_1samp(values, bound, alternative=side).pvalue for bound, side in ((-1, "greater"), (1, "less"))
    ]
    assert same.equivalence_p(1.0) == pytest.approx(max(sides))


def test_where_all_items_agree_it_is_the_t_interval_over_seeds():
    each = np.array([0.1, 0.4, 0.2])
    found = crossed_mean(np.repeat(each[:, None], 9, axis=1), range(9))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, each.mean(), stats.sem(each)))
    assert found.df == pytest.approx(2) and found.seed_sd == pytest.approx(each.std(ddof=1))


def test_what_never_varies_has_no_width_and_an_exact_p():
    still = crossed_mean(np.zeros((2, 6)), range(6))
    assert (still.low, still.high, still.p, still.detectable()) == (0, 0, 1, 0)
    assert still.equivalence_p(0.1) == pytest.approx(0.9**6)
    gone = crossed_mean(np.full((2, 6), -1.0), range(6))
    assert gone.p == paired_difference(np.ones(6), np.zeros(6), range(6), seed=0).p == 2 / 2**6
    with pytest.raises(SettingError, match="1 seed"):
        crossed_mean(np.zeros((1, 6)), range(6))


def test_intervals_cover_at_their_rate_and_those_that_take_runs_for_items_do_not():
    rng, hits, naive = np.random.default_rng(7), 0, 0
    for _ in range(300):
        table = 0.3 * rng.normal(size=40) + 0.1 * rng.normal(size=(5, 1)) + 0.2 * rng.normal(size=(5, 40))
        found = crossed_mean(table, range(40))
        hits += found.low <= 0 <= found.high
        low, high = stats.t.interval(0.95, table.size - 1, table.mean(), stats.sem(table.ravel()))
        naive += low <= 0 <= high
    assert 0.92 <= hits / 300 <= 0.99  # Binomial(300, .95) leaves .92 to .98 in 1 of 100 worlds
    assert naive / 300 < 0.75


# --- the table ------------------------------------------------------------------------------------------------------


def seeded_rows(seeds: tuple[int, ...]) -> CorruptionTest:
    """8 items in 4 scenes, all right without edits; noise of seed s breaks item i where (i + s) is a multiple of 3."""

    def row(i: int, name: str, seed: int | None, right: bool) -> dict[str, object]:
        return {
            "item": f"i{i}", "group": f"g{i // 2}", "answer": "A", "condition": name, "seed": seed,
            "choice": "A" if right else "B", "content_chosen": "red" if right else "blue", "correct": right,
            "same_output": right, "donor": None, "donor_content": None, "outcome": None,
        }  # fmt: skip

    rows = [row(i, name, None, True) for name in (CLEAN, "no-op") for i in range(8)]
    rows += [row(i, "noise", seed, (i + seed) % 3 != 0) for seed in seeds for i in range(8)]
    frame = pd.DataFrame(rows)
    frame["seed"] = frame["seed"].astype("Int64")
    conditions = {"no-op": [Edit(Identity()).to_json()], "noise": [Edit(Noise(1.0)).to_json()]}
    return CorruptionTest(Results(frame, {"conditions": conditions, "left_out": {}}), 0.1, 0)


def test_a_line_over_seeds_is_the_mean_of_their_lines_with_an_interval_over_both():
    frame = seeded_rows((0, 1, 2)).frame()
    alone = [seeded_rows((seed,)).frame().loc["noise"] for seed in range(3)]
    line = frame.loc["noise"]
    assert [one.change for one in alone] == [-3 / 8, -2 / 8, -3 / 8]
    for name in ("accuracy", "change", "lost", "gained", "changed", "same_output"):
        assert line[name] == pytest.approx(np.mean([one[name] for one in alone]))
    assert (line.n, line.seeds, line.seed_sd) == (8, 3, pytest.approx(np.std([3 / 8, 2 / 8, 3 / 8], ddof=1)))
    table = np.array([[-float((i + seed) % 3 == 0) for i in range(8)] for seed in range(3)])
    crossed = crossed_mean(table, np.repeat(range(4), 2))
    assert (line.change_low, line.change_high, line.p) == pytest.approx((crossed.low, crossed.high, crossed.p))
    assert math.isnan(line.p_mcnemar) and frame.seeds["no-op"] == 1 and line.p_holm == line.p


def test_an_item_that_lacks_a_seed_is_left_out_and_counted():
    whole = seeded_rows((0, 1, 2))
    rows = whole.results.rows
    part = rows[~((rows.item == "i3") & (rows.seed == 1).fillna(False))]
    line = CorruptionTest(Results(part, whole.results.manifest), 0.1, 0).frame().loc["noise"]
    assert (line.n, line.left_out) == (7, 1)


def test_a_control_that_is_not_bit_equal_is_shown_and_leaves_nothing_decided():
    test = seeded_rows((0, 1))
    rows = test.results.rows.copy()
    rows.loc[(rows.condition == "no-op") & (rows.item == "i2"), "same_output"] = False
    broken = CorruptionTest(Results(rows, test.results.manifest), 0.1, 0)
    assert test.broken_controls == {} and broken.broken_controls == {"no-op": 1}
    frame = broken.frame()
    said = judge(frame, "vector", 0.25, 0.1)
    assert said.word == UNDECIDED and "'no-op' (1 of 8 items differ)" in said.reason
    assert "CONTROL FAILED: no-op must be bit-equal to the clean run, and 1 of 8 items differ" in render(frame, "", {})
    assert "CONTROL FAILED" not in render(test.frame(), "", {})


# --- the item as its own donor, and on a model ------------------------------------------------------------------------


def test_the_item_is_its_own_donor_whatever_the_seed_and_nobody_else():
    items = [replace(item, group="") for item in shapes(6, seed=1)]
    own = Swap(donor="self", image="any")
    assert all(match_donors(items, own, seed=seed) == {item.id: item.id for item in items} for seed in range(3))
    with pytest.raises(DonorError, match="finds no donor for 1 of 1"):
        match_donors(items[:1], own, seed=0, pool=items[1:])
    assert Edit.from_json(Edit(own).to_json()) == Edit(own)
    for wrong in ({}, {"image": "any", "pool": 3}):
        with pytest.raises(EditError, match="image='any' and no pool"):
            Swap(donor="self", **wrong)


def test_on_a_model_seeds_run_what_draws_and_controls_stay_outside(tmp_path):
    items = shapes(6, seed=3)
    conditions = {"zero": [Edit(Zero())], "noise": [Edit(Noise(3.0))]}
    controls = {
        "self": [Edit(Swap(donor="self", image="any"))],
        "elsewhere": [Edit(Zero(), question[-3:], "hook_embed")],
    }
    with pytest.raises(EditError, match="'zero' among the conditions and among the controls"):
        corruption_test(twins().traced, items, conditions=conditions, controls=conditions)
    test = corruption_test(twins().traced, items, conditions=conditions, controls=controls, seeds=(4, 9))
    frame = test.frame()
    assert list(frame.seeds[1:]) == [1, 2, 1, 1] and list(frame.part[1:]) == ["vector", "vector", "control", "control"]
    assert frame.p_holm[["self", "elsewhere"]].isna().all() and frame.same_output["self"] == 6
    again = CorruptionTest.load(test.save(tmp_path / "t"))
    assert again.controls == ("self", "elsewhere")
    pd.testing.assert_frame_equal(frame, again.frame(), check_exact=True)
    one = run_conditions(twins().traced, items, {"noise": [Edit(Noise(3.0), seed=9)]}).rows
    both = test.results.rows
    mine = both[(both.condition == "noise") & (both.seed == 9)].letter_logprob.to_numpy()
    assert mine == pytest.approx(one[one.condition == "noise"].letter_logprob.to_numpy(), abs=1e-4)
    assert len(default_controls(0, 4)) == 4
