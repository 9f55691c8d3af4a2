"""The map: states against plain hooks, gaps by hand, and what is known of shipped models."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import prismlens as pl
from prismlens.data.shapes import shapes
from prismlens.decodability import Decodability, Place, decodability, read_states
from prismlens.decodability.gap import gap_frame
from prismlens.decodability.states import EMBEDDING, FINAL
from prismlens.errors import ResultsError, RoleError, SettingError, SiteError
from prismlens.interventions import Edit, Zero
from prismlens.positions import answer, image, latent, lead, question
from prismlens.probes import Protocol, evaluate, information_bound, label_entropy, permutation_p
from prismlens.results import Results
from prismlens.sites import get_act_name
from prismlens.stats import cluster_mean_interval
from prismlens.trace import PrismModel
from tests.plain_hooks import LAYERS, STEPS, Twins, plain_run, reading, twins, whole

SCENES = shapes(24, seed=3)
QUICK = Protocol("quick", (0.01,), folds=3)
SITES = [EMBEDDING, *(get_act_name("resid_post", layer) for layer in range(LAYERS)), FINAL]
ROLES = (question, image.box, *(latent[k] for k in range(STEPS)), lead)
"""Single positions and several, some of them the same token in every item."""


@pytest.fixture(scope="module")
def pair() -> Twins:
    made = twins()
    made.traced.batch_size = 10
    return made


@pytest.fixture(scope="module")
def measured(pair: Twins) -> Decodability:
    return decodability(pair.traced, SCENES, roles=ROLES, protocol=QUICK, n_permutations=9, n_controls=3, seed=1)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_states_are_those_that_plain_hooks_see(pair: Twins):
    states = read_states(pair.traced, SCENES, roles=ROLES)
    assert states.items == tuple(SCENES) and [place.depth for place in states.values][: len(SITES)] == list(
        range(len(SITES))
    )
    run, _ = plain_run(pair, SCENES)
    with torch.no_grad(), reading(pair.plain, SITES) as seen:
        pair.plain.step(**whole(pair, run))
    for place, values in states.values.items():
        role = next(role for role in ROLES if str(role) == place.role)
        (stream,) = seen[place.site]
        mask = role.mask(run)
        expected = torch.stack([stream[row, mask[row]].mean(0) for row in range(len(SCENES))])
        assert values == pytest.approx(expected.numpy(), abs=1e-4), str(place)


def test_a_latent_as_injected_is_the_state_that_the_step_before_it_gave(pair: Twins):
    values = read_states(pair.traced, SCENES, roles=ROLES).values
    for step in range(1, STEPS):
        before = values[Place(f"latent[{step - 1}]", LAYERS + 1, FINAL)]
        assert values[Place(f"latent[{step}]", 0, EMBEDDING)] == pytest.approx(before, abs=1e-4)


def test_items_run_once_and_are_replayed_once(pair: Twins, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[int]] = {"generate": [], "run_with_cache": []}
    for name, plain in (("generate", PrismModel.generate), ("run_with_cache", PrismModel.run_with_cache)):

        def counting(self, items, *args, name=name, plain=plain, **kwargs):
            seen[name].append(len(items))
            return plain(self, items, *args, **kwargs)

        monkeypatch.setattr(PrismModel, name, counting)
    read_states(pair.traced, SCENES)
    assert seen == {"generate": [24], "run_with_cache": [10, 10, 4]}


def test_layers_are_chosen_and_edits_apply(pair: Twins):
    states = read_states(pair.traced, SCENES[:4], layers=[1], roles=[latent[1]])
    assert [place.site for place in states.values] == [EMBEDDING, get_act_name("resid_post", 1), FINAL]
    edited = read_states(pair.traced.edited(Edit(Zero(), positions=latent[1])), SCENES[:4], roles=[latent[1]])
    assert not edited.values[Place("latent[1]", 0, EMBEDDING)].any()
    assert states.values[Place("latent[1]", 0, EMBEDDING)].any()
    with pytest.raises(SiteError, match="layer 7"):
        read_states(pair.traced, SCENES[:4], layers=[7], roles=[latent[1]])


def test_default_roles_that_no_item_has_are_listed_with_the_reason(pair: Twins):
    boxless = [replace(item, boxes=()) for item in SCENES[:4]]
    states = read_states(pair.traced, boxless)
    assert set(states.left_out) == {"image.box"} and "the item has no boxes" in states.left_out["image.box"]
    latents = [f"latent[{step}]" for step in range(STEPS)]
    assert list(dict.fromkeys(p.role for p in states.values)) == ["question", *latents, "latent.end", "answer.source"]
    with pytest.raises(RoleError, match=r"image\.box is absent in 4 of 4"):
        read_states(pair.traced, boxless, roles=[image.box])


def test_items_that_lack_what_others_have_are_an_error_or_listed(pair: Twins):
    items = [replace(item, boxes=()) if i in (1, 12) else item for i, item in enumerate(SCENES)]
    with pytest.raises(RoleError, match=r"absent in 2 of 24 items: .*the item has no boxes") as caught:
        read_states(pair.traced, items, roles=[question, image.box])
    assert items[12].id in str(caught.value)
    states = read_states(pair.traced, items, roles=[question, image.box], on_missing="drop")
    assert set(states.dropped) == {items[1].id, items[12].id} and len(states.items) == 22
    own = read_states(pair.traced, [item for item in items if item.boxes], roles=[question, image.box])
    for place, values in own.values.items():
        assert states.values[place] == pytest.approx(values, abs=1e-4)
    with pytest.raises(RoleError, match=r"each of 2 items lacks"):
        read_states(pair.traced, [items[1], items[12]], roles=[image.box], on_missing="drop")


def test_settings_are_checked(pair: Twins):
    with pytest.raises(SettingError, match="on_missing='skip'"):
        read_states(pair.traced, SCENES, on_missing="skip")
    with pytest.raises(SettingError, match="none of them twice"):
        read_states(pair.traced, SCENES, roles=[question, question])
    with pytest.raises(SettingError, match="on_rare='skip'"):
        decodability(pair.traced, SCENES, on_rare="skip")
    with pytest.raises(SettingError, match=r"24 of 24 items have no 'colour'.*") as caught:
        decodability(pair.traced, SCENES, target="colour")
    assert "content, kind" in str(caught.value)
    unknown = [replace(item, answer=None) if i == 3 else item for i, item in enumerate(SCENES)]
    with pytest.raises(SettingError, match=f"1 of 24 items have no 'answer': '{SCENES[3].id}'"):
        decodability(pair.traced, unknown)
    with pytest.raises(SettingError, match="fewer members than folds"):
        decodability(pair.traced, SCENES[:8], roles=[question])


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_frame_is_computed_from_the_rows_alone(pair: Twins, measured: Decodability):
    frame = measured.frame()
    assert len(frame) == len(ROLES) * len(SITES) and frame.attrs["left_out"] == {}
    cells = evaluate(
        {str(place): values for place, values in read_states(pair.traced, SCENES, roles=ROLES).values.items()},
        [item.answer for item in SCENES], [item.group for item in SCENES],
        nuisance=[item.question for item in SCENES], protocol=QUICK, n_permutations=9, n_controls=3, seed=1,
    )  # fmt: skip
    for place, line in zip(measured.places, frame.to_dict("records"), strict=True):
        cell = cells[str(place)]
        rows = measured.rows[(measured.rows.role == place.role) & (measured.rows.site == place.site)]
        assert list(rows["item"]) == [item.id for item in SCENES] and list(rows.label) == [
            item.answer for item in SCENES
        ]
        assert rows.correct.tolist() == cell.correct.tolist() == (rows.label == rows.predicted).tolist()
        assert line["accuracy"] == cell.correct.mean() and line["majority"] == 0.25
        assert line["selectivity"] == pytest.approx(cell.correct.mean() - cell.control.mean())
        assert line["p"] == permutation_p(cell.correct.mean(), cell.null) and line["p_map"] >= line["p"]
        logprobs = cell.logprobs[np.arange(24), cell.codes]
        assert line["bound"] == pytest.approx(information_bound(label_entropy([6, 6, 6, 6]), logprobs))
        interval = cluster_mean_interval(cell.correct, [item.group for item in SCENES], n_resamples=2000, seed=1)
        assert (line["low"], line["high"]) == (interval.low, interval.high)
        assert line["compression"] == pytest.approx(cell.description.compression) and line["C"] == 0.01
    # The lead is the same tokens in every item, so that before the first block there is nothing to read.
    assert frame[(frame.role == "lead") & (frame.depth == 0)].varying.item() == 0 < frame.varying.iloc[1]


def test_what_is_saved_is_what_is_loaded(measured: Decodability, tmp_path):
    again = Decodability.load(measured.save(tmp_path / "map"))
    pd.testing.assert_frame_equal(again.frame(), measured.frame())
    assert again.places == measured.places and again.seed == measured.seed == 1
    other = Results(measured.rows, {"left_out": {}}).save(tmp_path / "other")
    with pytest.raises(ResultsError, match="other results"):
        Decodability.load(other)


def test_rare_labels_are_left_out_on_request_and_just_enough_is_enough(pair: Twins):
    names = ["rare"] * 2 + ["enough"] * 3
    items = [replace(item, category=names[i]) if i < 5 else item for i, item in enumerate(SCENES)]
    asked = {"target": "category", "roles": [question], "layers": [], "protocol": QUICK, "n_permutations": 0}
    with pytest.raises(SettingError, match=r"1 of 4 classes .*'rare' \(2\)"):
        decodability(pair.traced, items, **asked)
    found = decodability(pair.traced, items, on_rare="drop", **asked)
    assert found.dropped == {item.id: "only 2 items have the label 'rare'" for item in items[:2]}
    assert found.rows["item"].nunique() == 22 and set(found.rows.label) == {"enough", *(i.category for i in items[5:])}
    # Questions of the two categories have different words: their embeddings give the other 19 away.
    assert found.frame().accuracy.iloc[0] >= 19 / 22


def places(n: int) -> list[Place]:
    return [Place(f"latent[{k}]", depth, name) for k in range(n) for depth, name in ((0, EMBEDDING), (1, FINAL))]


def test_the_gap_is_exactly_zero_between_identical_positions():
    right = np.random.default_rng(0).integers(2, size=30).astype(float)
    frame = gap_frame(right, {place: right.copy() for place in places(2)}, np.arange(30) // 2, n_resamples=200, seed=0)
    assert (frame[["gap", "low", "high"]] == 0).all().all()
    assert list(frame.p[:-1]) == [1.0] * 3 and np.isnan(frame.p.iloc[-1])


def test_gaps_by_hand_and_the_best_latent_is_chosen_anew_in_each_resample():
    source = np.array([1.0, 1, 1, 0])
    own = [np.array(row, dtype=float) for row in ([1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0])]
    frame = gap_frame(source, dict(zip(places(2), own, strict=True)), range(4), n_resamples=4000, seed=0)
    assert list(frame.reading) == ["paper", "injected", "injected", "best"]
    assert list(frame.role) == ["latent[1]", "latent[0]", "latent[1]", "latent[1]"]
    assert list(frame.gap) == [0.5, 0.5, 0.25, 0.25] and (frame.a == 0.75).all()
    # Items 0 and 1 to 3 favour different latents: a resample of one kind only leaves no gap, of 1, 2 or 3 none either.
    best = frame.iloc[-1]
    assert best.low == 0 and best.high == 0.5


def test_the_gap_of_a_map_pairs_the_answers_source_with_every_latent():
    rng = np.random.default_rng(0)
    asked = [*places(2), Place("answer.source", 0, EMBEDDING), Place("answer.source", 1, FINAL)]
    rows, about = [], []
    for place in asked:
        right = rng.integers(2, size=12).astype(bool)
        rows.append(
            pd.DataFrame(
                {
                    "item": [str(i) for i in range(12)],
                    "group": [str(i // 2) for i in range(12)],
                    **place.__dict__,
                    "correct": right,
                }
            )
        )
        about.append(place.__dict__)
    found = Decodability(Results(pd.concat(rows), {"places": about, "left_out": {}}))
    frame = found.gap()
    assert list(frame.reading) == ["paper", "injected", "injected", "best"]
    assert (frame.a == rows[-1].correct.mean()).all() and frame.b[0] == rows[3].correct.mean()
    short = Decodability(
        Results(pd.concat(rows[-2:]), {"places": about[-2:], "left_out": {"latent": "no latents were emitted"}})
    )
    with pytest.raises(SettingError, match=r"roles answer\.source has no gap") as caught:
        short.gap()
    assert "no latents were emitted" in str(caught.value)


# --- shipped models ---------------------------------------------------------------------------------------------------

ITEMS = pl.load_items("shapes", n=100)
CHEAP = Protocol("cheap", (0.1,))


def shipped(name: str, target: str) -> Decodability:
    asked = {"layers": [2], "roles": None if name == "tiny/sft" else [latent[0], latent[3], answer.source]}
    return decodability(
        pl.load(name),
        ITEMS,
        target=target,
        protocol=CHEAP,
        n_permutations=19,
        on_rare="drop",
        on_missing="drop",
        **asked,
    )


def test_the_bottlenecks_latents_hold_the_content_and_never_the_letter():
    content, letter = shipped("tiny/bottleneck", "content"), shipped("tiny/bottleneck", "answer")
    known, spelled = content.frame().set_index(["role", "depth"]), letter.frame().set_index(["role", "depth"])
    for step in (0, 3):
        line = known.loc[f"latent[{step}]", 0]
        assert line.low > 2 * line.majority and line.p_map == 0.05 and line.selectivity_low > 0.2 and line.bound > 0.5
        assert spelled.loc[f"latent[{step}]", 0].low < 0.3 and spelled.loc[f"latent[{step}]", 0].bound < 0.1
    # The published gap, of letters, is as large as it gets on a model whose every answer comes through its latents.
    assert letter.gap().set_index("reading").loc["paper"].low > 0.5
    assert content.gap().set_index("reading").loc["best"].high < 0.2


def test_a_model_without_latents_says_so():
    found = shipped("tiny/sft", "answer")
    assert set(found.left_out) == {"latent", "latent.end"} == set(found.frame().attrs["left_out"])
    assert set(found.rows.role) == {"question", "image.box", "answer.source"}
    with pytest.raises(SettingError, match="no latents were emitted"):
        found.gap()
