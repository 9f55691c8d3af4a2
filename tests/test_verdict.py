"""The rules from a table of conditions to a word, on either side of every boundary; and without any effect at all."""

from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest

import prismlens.stats as stats
from prismlens.corruption import COLUMNS, CorruptionTest
from prismlens.experiment import CLEAN
from prismlens.interventions import DeleteKV, Edit, Noise, Zero
from prismlens.results import Results
from prismlens.verdict import ALPHA, BYPASSED, LOAD_BEARING, PARTLY, UNDECIDED, Judgement, Verdict, judge

MAJORITY, MARGIN = 0.25, 0.05


def line(condition: str, **values: object) -> dict[str, object]:
    """A condition of the vector that changes nothing and is known to."""
    usual = {
        "part": "vector", "removes": True, "n": 100, "accuracy": 0.9, "low": 0.85, "high": 0.95, "change": 0.0,
        "change_low": -0.02, "change_high": 0.02, "p_holm": 1.0, "equivalent": True, "detectable": 0.08, "changed": 3,
    }  # fmt: skip
    return {"condition": condition, **usual, **values}


def broken(condition: str, **values: object) -> dict[str, object]:
    """A condition of the vector that takes everything away."""
    usual = {
        "accuracy": 0.27, "low": 0.19, "high": 0.35, "change": -0.63, "change_low": -0.72, "change_high": -0.54,
        "p_holm": 0.001, "equivalent": False, "detectable": 0.1, "changed": 60,
    }  # fmt: skip
    return line(condition, **{**usual, **values})


def dented(condition: str, **values: object) -> dict[str, object]:
    """A condition of the vector that takes something away."""
    usual = {"accuracy": 0.7, "low": 0.6, "high": 0.8, "change": -0.2, "change_low": -0.3, "change_high": -0.1}
    return broken(condition, **{**usual, "changed": 21, **values})


def unclear(condition: str, **values: object) -> dict[str, object]:
    """A condition of the vector of which nothing can be said."""
    usual = {"accuracy": 0.87, "change": -0.03, "change_low": -0.1, "change_high": 0.04, "p_holm": 0.4}
    return line(condition, **{**usual, "equivalent": False, "detectable": 0.11, **values})


def frame(*lines: dict[str, object], **clean: object) -> pd.DataFrame:
    first = {"condition": CLEAN, "part": CLEAN, "n": 100, "accuracy": 0.9, "low": 0.85, "high": 0.95, **clean}
    return pd.DataFrame([first, *lines], columns=COLUMNS).set_index("condition")


def said(*lines: dict[str, object], part: str = "vector", **clean: object) -> Judgement:
    return judge(frame(*lines, **clean), part, MAJORITY, MARGIN)


CONTROL = line("no-op", part="control", p_holm=float("nan"))
UNTESTED = broken("left out", n=0, **dict.fromkeys(("accuracy", "low", "high", "change", "p_holm"), float("nan")))
NOISE = {"removes": False}


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        # 2: something was tested
        ([], UNDECIDED),
        ([CONTROL], UNDECIDED),
        ([UNTESTED], UNDECIDED),
        ([broken("slot", part="slot")], UNDECIDED),
        # 3: every condition that removes is significant and reaches the majority; noise need not
        ([broken("zero"), broken("swap")], LOAD_BEARING),
        ([broken("zero", low=MAJORITY), broken("swap")], LOAD_BEARING),
        ([broken("zero", low=MAJORITY + 1e-9), broken("swap")], PARTLY),
        ([broken("zero", low=0.1, high=0.2)], LOAD_BEARING),
        ([broken("zero", p_holm=ALPHA - 1e-9)], LOAD_BEARING),
        ([broken("zero", p_holm=ALPHA)], UNDECIDED),
        ([broken("zero"), broken("swap", p_holm=ALPHA)], PARTLY),
        ([broken("zero"), line("swap")], PARTLY),
        ([broken("zero"), unclear("swap")], PARTLY),
        ([broken("zero"), line("noise", **NOISE)], LOAD_BEARING),
        ([broken("zero"), unclear("noise", **NOISE), CONTROL, UNTESTED], LOAD_BEARING),
        ([broken("zero"), line("slot", part="slot")], LOAD_BEARING),
        ([broken("noise", **NOISE)], PARTLY),
        # 4: all are equivalent, noise too
        ([line("zero"), line("noise", **NOISE)], BYPASSED),
        ([line("zero"), line("noise", **NOISE), CONTROL, UNTESTED], BYPASSED),
        ([line("zero"), unclear("noise", **NOISE)], UNDECIDED),
        ([line("zero"), unclear("swap")], UNDECIDED),
        ([line("zero"), unclear("slot", part="slot")], BYPASSED),
        ([line("zero", p_holm=0.01, change=-0.02)], BYPASSED),
        # 5: something is lost
        ([dented("zero")], PARTLY),
        ([dented("zero"), line("swap")], PARTLY),
        ([line("zero"), dented("noise", **NOISE)], PARTLY),
        ([dented("zero", p_holm=ALPHA), line("swap")], UNDECIDED),
        # 6: a gain is no loss
        ([dented("zero", change=0.2, change_low=0.1, change_high=0.3, accuracy=0.95)], UNDECIDED),
        ([broken("zero", change=0.2, change_low=0.1, change_high=0.3)], UNDECIDED),
        ([unclear("zero")], UNDECIDED),
    ],
)
def test_each_rule_on_either_side_of_its_boundary(lines, word: str):
    assert said(*lines).word == word


@pytest.mark.parametrize("lines", [[broken("zero")], [line("zero")], [dented("zero")]])
@pytest.mark.parametrize(("low", "decided"), [(MAJORITY - 0.01, False), (MAJORITY, False), (MAJORITY + 1e-9, True)])
def test_a_model_that_is_no_better_than_guessing_has_nothing_to_lose(lines, low: float, decided: bool):
    judgement = said(*lines, low=low)
    assert (judgement.word != UNDECIDED) == decided
    assert decided or ("0.900 [0." in judgement.reason and "majority rate 0.250" in judgement.reason)


def test_the_parts_are_judged_apart():
    both = [broken("zero"), line("kv", part="slot"), line("deleted", part="slot")]
    assert said(*both).word == LOAD_BEARING and said(*both, part="slot").word == BYPASSED


@pytest.mark.parametrize(
    ("narrow", "wide", "word"),
    [
        (line("zero"), line("zero", change_low=-0.1, change_high=0.1, equivalent=False), BYPASSED),
        (dented("zero"), dented("zero", low=0.45, high=0.95, change_low=-0.45, change_high=0.05, p_holm=0.2), PARTLY),
        (broken("zero"), broken("zero", low=0.0, high=0.9, change_low=-1, change_high=0.1, p_holm=0.2), LOAD_BEARING),
    ],
)
def test_the_same_numbers_with_wider_intervals_are_undecided(narrow, wide, word: str):
    assert narrow["accuracy"] == wide["accuracy"] and narrow["change"] == wide["change"]
    assert said(narrow).word == word and said(wide).word == UNDECIDED


def test_reasons_hold_the_numbers_behind_the_word():
    assert said(broken("zero"), broken("swap", accuracy=0.3)).reason == (
        "without them accuracy falls to 0.270 to 0.300 (majority 0.250)"
    )
    assert said(broken("zero")).reason == "without them accuracy falls to 0.270 (majority 0.250)"
    assert said(line("zero", change=0.01), line("noise", change=-0.03, changed=5, **NOISE)).reason == (
        "no condition changes accuracy by more than 0.030, all are equivalent within 0.050; "
        "at most 5 of 100 answers change"
    )
    assert said(dented("zero"), dented("swap", change=-0.1), line("mean")).reason == (
        "'zero' changes accuracy by -0.200 [-0.300, -0.100], to 0.700; 2 of 3 conditions lower it"
    )
    assert said(unclear("zero"), line("mean")).reason == (
        "no significant loss, and not equivalent within 0.050: "
        "effects smaller than 0.110 could not be found with these items"
    )


def test_a_verdict_as_text_says_both_words_and_the_accuracy():
    verdict = Verdict(said(broken("zero")), said(line("kv", part="slot"), part="slot"), "m is right on 0.900.")
    first, second, third = str(verdict).splitlines()
    assert first == "m is right on 0.900."
    assert second == "Injected vectors load-bearing: without them accuracy falls to 0.270 (majority 0.250)"
    assert third.startswith("Slots (keys and values) bypassed: no condition changes accuracy by more than 0.000")


# --- with no effect, and with one -------------------------------------------------------------------------------------

SIMULATED = {"zero": Edit(Zero()), "noise": Edit(Noise(1.0)), "deleted": Edit(DeleteKV())}
GROUPS = np.repeat(np.arange(50), 2)


def simulated(rng: np.random.Generator, kept: float) -> pd.DataFrame:
    """The frame of 100 items in 50 scenes. Each run, clean or not, gets an item of a scene right by the scene's own
    chance; `kept` is the share of that chance that a condition leaves, beside a guess among four."""
    chance = rng.beta(6, 2, 50)[GROUPS]
    rows = []
    for name in (CLEAN, *SIMULATED):
        rate = chance if name == CLEAN else kept * chance + (1 - kept) * 0.25
        right = rng.random(100) < rate
        rows += [
            {"item": f"i{i}", "group": f"g{GROUPS[i]}", "answer": "ABCD"[i % 4], "condition": name, "donor": None,
             "choice": "ABCD"[(i + (not ok)) % 4], "correct": bool(ok), "same_output": False}
            for i, ok in enumerate(right)
        ]  # fmt: skip
    manifest = {"conditions": {name: [edit.to_json()] for name, edit in SIMULATED.items()}, "left_out": {}}
    return CorruptionTest(Results(pd.DataFrame(rows), manifest), MARGIN, 0).frame()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples: the p-values' grid, 1/400, is still far below the size of the tests. And statsmodels collects
    garbage at every correction, which costs more than all the rest."""
    monkeypatch.setattr("gc.collect", lambda: 0)
    for name in ("cluster_mean_interval", "paired_difference"):
        monkeypatch.setattr(stats, name, partial(getattr(stats, name), n_resamples=399))


@pytest.mark.usefixtures("quick")
def test_without_an_effect_a_loss_is_found_at_most_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    frames = [simulated(rng, kept=1.0) for _ in range(100)]
    found = Counter(
        any(judge(frame, part, MAJORITY, MARGIN).word in (LOAD_BEARING, PARTLY) for part in ("vector", "slot"))
        for frame in frames
    )
    # The correction is over both parts together. Binomial(100, .05) exceeds 10 in 1 of 90 worlds.
    assert found[True] <= 10


@pytest.mark.usefixtures("quick")
def test_with_an_effect_it_is_found():
    rng = np.random.default_rng(1)
    gone = Counter(judge(simulated(rng, kept=0.0), "vector", MAJORITY, MARGIN).word for _ in range(10))
    some = Counter(judge(simulated(rng, kept=0.5), "vector", MAJORITY, MARGIN).word for _ in range(10))
    assert gone[LOAD_BEARING] >= 9 and some[PARTLY] >= 9


def test_nothing_changed_counts_only_where_a_change_could_have_been_found():
    still = {"change_low": 0.0, "change_high": 0.0, "changed": 0}
    assert said(line("zero", **still, detectable=MARGIN)).word == BYPASSED
    assert said(line("zero", **still, detectable=MARGIN + 0.001)).word == UNDECIDED
    assert said(line("zero", detectable=MARGIN + 0.001)).word == BYPASSED, "where items vary the test itself decides"


def test_noise_alone_never_shows_that_nothing_is_used():
    assert said(line("noise", removes=False)).word == UNDECIDED
    assert said(line("noise", removes=False), line("zero")).word == BYPASSED


def test_a_wide_interval_alone_does_not_count_as_lost():
    wide = broken("zero", accuracy=0.55, low=0.2, high=0.8, change=-0.35, change_low=-0.6, change_high=-0.1)
    assert said(wide).word == PARTLY
    assert said(broken("zero")).word == LOAD_BEARING
