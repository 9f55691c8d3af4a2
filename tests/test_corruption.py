"""The corruption test: its frame against numbers worked out by hand, by enumeration, and by other libraries."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

import prismlens.stats as statistics
from prismlens.corruption import (
    COLUMNS,
    CorruptionTest,
    corruption_test,
    default_conditions,
    default_controls,
    part_of,
)
from prismlens.data.shapes import shapes
from prismlens.errors import ResultsError
from prismlens.experiment import CLEAN
from prismlens.interventions import Cut, DeleteKV, Edit, Identity, Mean, Noise, Scale, Swap, Zero
from prismlens.positions import answer, latent
from prismlens.results import Results
from tests.plain_hooks import twins

NAMES = [f"i{i}" for i in range(12)]
GROUPS = [f"g{i // 2}" for i in range(12)]
ANSWERS = list("AABBCCAABBCA")
OPTIONS = {"A": "red", "B": "green", "C": "blue"}

CONDITIONS = {
    "no-op": (Edit(Identity()),),
    "zero": (Edit(Zero()),),
    "noise": (Edit(Noise(1.0)),),
    "deleted": (Edit(DeleteKV()),),
    "follow": (Edit(Swap()),),
    "one scene": (Edit(Swap(), site="kv"),),
    "nobody": (Edit(Mean()),),
}
RIGHT = {
    CLEAN: [1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1],
    "no-op": [1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1],
    "zero": [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1],
    "noise": [1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1],
    "deleted": [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
}


def wrong(letter: str) -> str:
    return {"A": "B", "B": "C", "C": "A"}[letter]


def row(i: int, condition: str, choice: str | None, **more: object) -> dict[str, object]:
    return {
        "item": NAMES[i], "group": GROUPS[i], "category": "c", "answer": ANSWERS[i], "condition": condition,
        "choice": choice, "content_chosen": choice and OPTIONS[choice], "correct": choice == ANSWERS[i],
        "same_output": False, "donor": None, "donor_content": None, "outcome": None, **more,
    }  # fmt: skip


def made() -> Results:
    """12 items in 6 scenes. The first item is the one that "follow" leaves out, so that a shift of rows would show."""
    rows = [
        row(
            i,
            name,
            ANSWERS[i] if right else wrong(ANSWERS[i]),
            same_output=name == "no-op" or (name, i) == ("noise", 0),
        )
        for name, rights in RIGHT.items()
        for i, right in enumerate(rights)
    ]
    # Item 5 is clean wrong with A (red), item 9 with C (blue). Follow: 1, 2, 3, 9; stay: 4, 6; other: the rest.
    donors = {1: "B", 2: "A", 3: "C", 4: "C", 5: "A", 6: "B", 7: "C", 8: "A", 9: "C", 10: "A", 11: "B"}
    chosen = {1: "B", 2: "A", 3: "C", 4: "C", 5: "B", 6: "A", 7: "B", 8: "C", 9: "C", 10: "B", 11: None}
    for i, letter in chosen.items():
        content = OPTIONS[donors[i]]
        outcome = "stay" if letter == ANSWERS[i] else "follow" if letter == donors[i] else "other"
        rows.append(row(i, "follow", letter, donor=f"d{i}", donor_content=content, outcome=outcome))
    rows += [row(i, "one scene", ANSWERS[i], donor="d", donor_content="red", outcome="stay") for i in (2, 3)]
    manifest = {
        "conditions": {name: [edit.to_json() for edit in edits] for name, edits in CONDITIONS.items()},
        "left_out": {"follow": ["i0"], "one scene": [n for n in NAMES if n not in ("i2", "i3")], "nobody": NAMES},
        "model": "by hand",
    }  # fmt: skip
    return Results(pd.DataFrame(rows), manifest)


@pytest.fixture(scope="module")
def by_hand() -> CorruptionTest:
    return CorruptionTest(made(), margin=0.1, seed=3)


@pytest.fixture(scope="module")
def frame(by_hand: CorruptionTest) -> pd.DataFrame:
    return by_hand.frame()


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array(RIGHT[CLEAN], float), np.array(RIGHT[name], float)


TESTED = ("zero", "noise", "deleted")


# --- what the conditions are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "part"),
    [
        ([Edit(Identity())], "control"),
        ([Edit(Identity(), site="kv"), Edit(Identity())], "control"),
        ([Edit(Zero())], "vector"),
        ([Edit(Swap(donor="self", image="any"), site="kv")], "control"),
        ([Edit(Identity()), Edit(Noise(1.0), mode="held")], "vector"),
        ([Edit(Swap(), positions=latent[0])], "vector"),
        ([Edit(Zero(), site="kv")], "slot"),
        ([Edit(Zero()), Edit(Zero(), site="kv")], "slot"),
        ([Edit(Scale(0.0), site="blocks.1.hook_resid_post")], "slot"),
        ([Edit(DeleteKV())], "slot"),
        ([Edit(Cut(to=latent, by=answer))], "slot"),
    ],
)
def test_the_part_is_read_off_the_edits(edits, part: str):
    assert part_of(edits) == part


def test_the_default_conditions_ask_about_both_parts_with_a_control_and_pass_on_the_seed():
    conditions = default_conditions(7)
    assert Counter(map(part_of, conditions.values())) == {"vector": 8, "slot": 3, "control": 1}
    assert all(edit.seed == 7 for edits in conditions.values() for edit in edits)
    assert part_of(conditions["no-op"]) == "control" and conditions["noise 3 std, held"][0].mode == "held"
    assert all(name.startswith("slot:") == (part_of(edits) == "slot") for name, edits in conditions.items())


# --- the frame --------------------------------------------------------------------------------------------------------


def test_there_is_a_line_for_every_condition_and_every_column(frame):
    assert list(frame.index) == [CLEAN, *CONDITIONS]
    assert ["condition", *frame.columns] == list(COLUMNS)
    assert list(frame.part) == ["clean", "control", "vector", "vector", "slot", "vector", "slot", "vector"]
    assert list(frame.removes[1:]) == [False, True, False, True, True, True, True]
    assert list(frame.n) == [12, 12, 12, 12, 12, 11, 2, 0]
    assert list(frame.left_out[1:]) == [0, 0, 0, 0, 1, 10, 12]


def test_counts_are_those_of_the_rows(frame):
    assert frame.accuracy[:5].to_numpy() == pytest.approx([10 / 12, 10 / 12, 3 / 12, 9 / 12, 3 / 12])
    assert list(frame.gained[1:5]) == [0, 1, 0, 0] and list(frame.lost[1:5]) == [0, 8, 1, 7]
    assert list(frame.changed[1:5]) == [0, 9, 1, 7] and list(frame.same_output[1:5]) == [12, 0, 1, 0]
    assert frame.change[1:5].to_numpy() == pytest.approx([0, -7 / 12, -1 / 12, -7 / 12])


def totals(values: np.ndarray) -> np.ndarray:
    return values.reshape(6, 2).sum(1)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The expanded percentile interval from all 6^6 resamples, all of them equally likely."""
    means = np.array([sum(drawn) / 12 for drawn in itertools.product(totals(values), repeat=6)])
    tail = stats.norm.cdf(-math.sqrt(6 / 5) * stats.t.ppf(0.975, 5))
    return tuple(np.quantile(means, [tail, 1 - tail]))


@pytest.mark.parametrize("name", [CLEAN, *TESTED])
def test_intervals_are_those_of_all_resamples_of_the_scenes(frame, name: str):
    before, after = pair(name)
    assert (frame.low[name], frame.high[name]) == pytest.approx(bootstrap(after), abs=0.01)
    if name != CLEAN:
        ends = frame.change_low[name], frame.change_high[name]
        assert ends == pytest.approx(bootstrap(after - before), abs=0.01)


@pytest.mark.parametrize("name", ["no-op", *TESTED])
def test_p_values_are_those_of_other_libraries(frame, name: str):
    before, after = pair(name)
    sums = totals(after - before)
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    assert frame.p[name] == pytest.approx(np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9))
    table = pd.crosstab(before == 1, after == 1).reindex(index=[True, False], columns=[True, False], fill_value=0)
    assert frame.p_mcnemar[name] == pytest.approx(mcnemar(table, exact=True).pvalue)
    if name != "no-op":  # scenes are equally large, so a t-test of their means is the clustered one
        bounds = ((-0.1, "greater"), (0.1, "less"))
        sides = [stats.ttest_1samp(sums / 2, bound, alternative=side).pvalue for bound, side in bounds]
        assert frame.p_equivalent[name] == pytest.approx(max(sides))
    else:
        assert frame.p_equivalent[name] == pytest.approx(0.9**6)  # six scenes without a change prove little
    assert not frame.equivalent[name]


@pytest.mark.parametrize("name", ["no-op", *TESTED])
def test_the_detectable_effect_is_the_larger_of_spread_and_count(frame, name: str):
    before, after = pair(name)
    error = totals(after - before).std(ddof=1) / 2 / math.sqrt(6)
    spread = (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * error
    counting = 1 - (1 - 0.8 ** (1 / 6)) ** (1 / 2)  # all of 6 scenes have to change
    assert frame.detectable[name] == pytest.approx(max(spread, counting))


def test_holm_corrects_over_the_conditions_that_were_tested_and_not_over_controls(frame):
    tested = ["zero", "noise", "deleted", "follow"]
    assert frame.p_holm[tested].to_numpy(float) == pytest.approx(multipletests(frame.p[tested], method="holm")[1])
    assert list(frame.p[tested]) == [1 / 16, 1, 1 / 32, 1 / 16]
    assert list(frame.p_holm[tested]) == pytest.approx([3 / 16, 1, 4 / 32, 3 / 16])
    assert frame.p_holm.drop(tested).isna().all()


def test_the_margin_decides_what_is_equivalent():
    wide = CorruptionTest(made(), margin=0.5, seed=3).frame()
    assert wide.equivalent["noise"] and not wide.equivalent["deleted"] and not wide.equivalent["zero"]


def test_the_seed_is_that_of_every_resampling(by_hand, frame, monkeypatch: pytest.MonkeyPatch):
    pd.testing.assert_frame_equal(frame, by_hand.frame(), check_exact=True)
    seeds = []
    for name in ("cluster_mean_interval", "paired_difference"):
        whole = getattr(statistics, name)
        monkeypatch.setattr(
            statistics, name, lambda *args, seed, whole=whole: seeds.append(seed) or whole(*args, seed=seed)
        )
    by_hand.frame()
    assert set(seeds) == {3} and len(seeds) == 1 + 2 * 5 + 2


def test_following_and_staying_are_counted_on_the_items_that_are_there(frame):
    line = frame.loc["follow"]
    assert (line.follow, line.stay) == pytest.approx((4 / 11, 2 / 11))
    # The clean answer is already the donor's for items 4, 5 and 9; but for item 4 it is the own one too.
    assert line.follow_null == pytest.approx(2 / 11)
    assert line.follow_low < line.follow < line.follow_high and line.stay_low < line.stay < line.stay_high
    # Clean, without the first item, 9 of 11 are right; under the condition those that stay.
    assert line.accuracy == pytest.approx(2 / 11) and line.change == pytest.approx(-7 / 11)
    assert (line.gained, line.lost, line.changed) == (0, 7, 8)
    assert frame.follow.drop("follow").isna().all() and frame.follow_null.drop("follow").isna().all()


def test_a_condition_with_nothing_left_or_one_scene_has_counts_and_no_statistics(frame):
    counts = ["part", "removes", "n", "left_out", "changed", "same_output", "bit_equal", "seeds"]
    for name in ("one scene", "nobody"):
        assert frame.loc[name].drop(counts).isna().all()
        assert frame.loc[name, counts].notna().all()
    assert frame.changed["one scene"] == 0 and frame.changed["nobody"] == 0


def test_nothing_tested_at_all_is_a_frame_too():
    results = made()
    rows = results.rows[results.rows.condition.isin([CLEAN, "no-op"])]
    manifest = results.manifest | {"conditions": {"no-op": results.manifest["conditions"]["no-op"]}}
    frame = CorruptionTest(Results(rows, manifest)).frame()
    assert list(frame.index) == [CLEAN, "no-op"] and frame.p_holm.isna().all()


def test_the_order_of_the_rows_changes_nothing(by_hand, frame):
    shuffled = by_hand.results.rows.sample(frac=1, random_state=0)
    again = CorruptionTest(Results(shuffled, by_hand.results.manifest), margin=0.1, seed=3).frame()
    pd.testing.assert_frame_equal(frame, again)


def test_the_majority_is_that_of_the_answers(by_hand):
    assert by_hand.majority == (5 / 12, "A")


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_what_is_loaded_gives_the_same_frame(by_hand, frame, tmp_path: Path):
    loaded = CorruptionTest.load(by_hand.save(tmp_path / "saved"))
    assert (loaded.margin, loaded.seed) == (0.1, 3) and loaded.left_out == by_hand.left_out
    pd.testing.assert_frame_equal(frame, loaded.frame(), check_exact=True)
    assert {name: loaded.edits(name) for name in CONDITIONS} == CONDITIONS
    pd.testing.assert_frame_equal(frame, CorruptionTest.load(loaded.save(tmp_path / "again")).frame())


def test_other_results_are_refused(tmp_path: Path):
    folder = made().save(tmp_path / "other")
    with pytest.raises(ResultsError, match="holds other results"):
        CorruptionTest.load(folder)


# --- on a model -------------------------------------------------------------------------------------------------------


def test_on_a_model_every_default_condition_has_its_line(tmp_path: Path):
    items = shapes(8, seed=3)
    by_hand = corruption_test(twins().traced, items, margin=0.2, seed=5, on_missing="drop")
    frame = by_hand.frame()
    assert (by_hand.margin, by_hand.seed) == (0.2, 5)
    every = default_conditions(5) | default_controls(5, 3)
    assert list(frame.index) == [CLEAN, *every]
    assert {name: by_hand.edits(name) for name in every} == every and by_hand.controls == tuple(default_controls(0, 3))
    assert set(frame.part[list(default_controls(0, 3))]) == {"control"}
    assert list(frame.index[frame.bit_equal == True]) == ["no-op", "control: self-donor"]  # noqa: E712
    assert frame.same_output["control: self-donor"] == 8 and not by_hand.broken_controls
    assert frame.same_output["control: question zeroed"] < 8, "the same edit elsewhere was made"
    assert (frame.n + frame.left_out.fillna(0) == 8).all() and frame.same_output["no-op"] == 8
    assert frame.left_out["swap, other answer"] == len(by_hand.left_out["swap, other answer"]) > 0
    pd.testing.assert_frame_equal(frame, CorruptionTest.load(by_hand.save(tmp_path / "run")).frame(), check_exact=True)
