"""Experiments: every row against a run driven by hand, no-ops to the last bit, and items that are left out."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import entropy
from torch import nn

from prismlens.data.shapes import shapes
from prismlens.errors import DonorError, EditError, ItemError, RoleError, SettingError, SiteError
from prismlens.experiment import CLEAN, outcome, run_conditions
from prismlens.experiment.records import records
from prismlens.interventions import DeleteKV, Edit, Identity, Noise, Scale, Swap, Zero, match_donors
from prismlens.models.answers import letter_ids
from prismlens.positions import image, latent
from prismlens.results import Results
from prismlens.trace import PrismModel, Run
from tests.plain_hooks import STEPS, recording, twins

SCENES = shapes(9, seed=3)
LONELY = replace(SCENES[8], category="of its own", group="alone", id="lonely")
"""Nobody can be its donor."""
GIVER = replace(SCENES[1], options=("above", "near", "far", "behind"), answer="A", boxes=(), group="giver", id="giver")
"""Others have its answer among their options, it has none of theirs; and it has no box."""
ITEMS = [LONELY, GIVER, *SCENES[:8]]
ALL = {item.id for item in ITEMS}

BOX = {"positions": image.box, "site": "blocks.0.hook_resid_pre"}
CONDITIONS = {
    "no-op": [Edit(Identity())],
    "no-op, held": [Edit(Identity(), mode="held")],
    "no-op in the box": [Edit(Identity(), **BOX)],
    "no-op in the box, held": [Edit(Identity(), mode="held", **BOX)],
    "zero": [Edit(Zero())],
    "noise, held": [Edit(Noise(3.0, unit="std"), mode="held", seed=2)],
    "deleted": [Edit(DeleteKV())],
    "swap": [Edit(Swap(), seed=1)],
    "follow": [Edit(Swap(donor="answer-in-options"), seed=6)],
    "box and swap": [Edit(Zero(), **BOX), Edit(Swap(), seed=1)],
}
LEFT_OUT = {
    "no-op in the box": {"giver"},
    "no-op in the box, held": {"giver"},
    "swap": {"lonely"},
    "follow": {"giver", "lonely", SCENES[4].id},
    "box and swap": {"giver", "lonely"},
}


@torch.no_grad()
def talking() -> PrismModel:
    """An untrained model with strong attention that answers with one letter, and which one hangs on its latents."""
    pair = twins()
    model, head = pair.traced, pair.traced.hf.lm_head
    model.max_new_tokens = 1
    for layer in model.hf.model.language_model.layers:
        layer.self_attn.o_proj.weight *= 10
        layer.self_attn.k_proj.weight *= 3
    letters = [ids[0] for ids in letter_ids(pair.processor, "ABCD")]
    with recording(model.hf) as record:
        model.generate(ITEMS)
    weight, bias = head.weight.clone(), torch.zeros(head.out_features)
    weight[letters] *= 5
    bias[letters] = 100 - 5 * record.logits[-1][:, letters].mean(0)
    head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
    return model


@pytest.fixture(scope="module")
def model() -> PrismModel:
    return talking()


@pytest.fixture(scope="module")
def clean(model: PrismModel) -> Run:
    return model.generate(ITEMS)


@pytest.fixture(scope="module")
def results(model: PrismModel) -> Results:
    return run_conditions(model, ITEMS, CONDITIONS, on_missing="drop")


def kept_in(name: str) -> list:
    return [item for item in ITEMS if item.id not in LEFT_OUT.get(name, ())]


def able_in(name: str) -> list:
    return [item for item in ITEMS if item.boxes or "box" not in name]


def rows_of(results: Results, name: str) -> list[dict]:
    rows = results.rows[results.rows.condition == name].astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_the_model_of_these_tests_answers_in_ways_that_differ(results):
    rows = results.rows
    assert rows.choice.notna().all() and len(set(rows[rows.condition == CLEAN].choice)) > 2
    before = rows[rows.condition == CLEAN].set_index("item").choice
    for name in ("zero", "noise, held", "deleted", "swap", "follow", "box and swap"):
        after = rows[rows.condition == name].set_index("item").choice
        assert (before[after.index] != after).any(), name


@pytest.mark.parametrize("name", [CLEAN, *CONDITIONS])
def test_every_row_is_what_a_run_by_hand_gives(model, clean, results, name: str):
    kept, edits = kept_in(name), CONDITIONS.get(name, [])
    run = model.edited(*edits).generate(kept, reference=clean.take(able_in(name))) if edits else clean
    donors = run.donors[0] if run.donors else {}
    rows, by_id = rows_of(results, name), {item.id: item for item in ITEMS}
    assert [row["item"] for row in rows] == [item.id for item in kept]
    for i, (row, item) in enumerate(zip(rows, kept, strict=True)):
        scores, before = run.option_logprobs[i], clean.option_logprobs[ITEMS.index(item)]
        right, choice = "ABCD".index(item.answer), run.choice[i]
        expected = {
            "group": item.group, "category": item.category, "answer": item.answer, "choice": choice,
            "content_chosen": item.options["ABCD".index(choice)], "correct": choice == item.answer,
            "steps_taken": STEPS, "text": run.text[i],
        }  # fmt: skip
        assert {key: row[key] for key in expected} == expected
        others = [float(score) for k, score in enumerate(scores) if k != right]
        assert row["letter_logprob"] == pytest.approx(float(scores[right]), abs=1e-4)
        assert row["option_logprobs"] == pytest.approx(scores[: len(item.options)].tolist(), abs=1e-4)
        assert row["margin"] == pytest.approx(float(scores[right]) - max(others), abs=1e-5)
        assert row["kl_to_clean"] == pytest.approx(entropy(before.exp(), scores.exp()), abs=1e-5)
        near = nn.functional.cosine_similarity(run.latents[i], clean.latents[ITEMS.index(item)], dim=-1).mean()
        assert row["latent_cosine_to_clean"] == pytest.approx(float(near), abs=1e-5)
        donor = by_id.get(donors.get(item.id))
        assert row["donor"] == (donor and donor.id) and row["donor_content"] == (donor and donor.content)
        if donor:
            whose = {donor.content: "follow"} | {item.content: "stay"}
            assert row["outcome"] == whose.get(row["content_chosen"], "other")
        else:
            assert row["outcome"] is None


def test_an_outcome_is_the_donors_answer_or_the_own_one_or_neither():
    assert outcome("red", own="blue", donor="red") == "follow"
    assert outcome("blue", own="blue", donor="red") == "stay"
    assert outcome("red", own="red", donor="red") == "stay", (
        "an answer that did not leave the item's own follows nobody"
    )
    assert outcome("grey", own="blue", donor="red") == "other" and outcome(None, own="blue", donor="red") == "other"
    assert outcome(None, own=None, donor=None) == "other"


def test_rows_come_in_the_order_of_conditions_clean_first(results):
    assert list(dict.fromkeys(results.rows.condition)) == [CLEAN, *CONDITIONS]


# --- no change at all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name.startswith("no-op")])
def test_a_no_op_is_equal_to_the_last_bit_also_where_items_are_left_out(results, name: str):
    rows = results.rows[results.rows.condition == name]
    assert rows.same_latents.all() and rows.same_output.all()
    assert (rows.kl_to_clean == 0).all() and rows.latent_cosine_to_clean.to_numpy() == pytest.approx(1, abs=1e-6)
    before = results.rows[results.rows.condition == CLEAN].set_index("item").loc[list(rows.item)]
    for column in ("choice", "text", "correct", "content_chosen", "steps_taken"):
        assert list(rows[column]) == list(before[column])
    for column in ("letter_logprob", "margin", "option_logprobs"):
        assert list(rows[column]) == list(before[column])


@pytest.mark.parametrize("mode", ["free", "held"])
def test_a_no_op_on_few_of_the_items_is_compared_in_the_batch_that_it_ran_in(model, mode: str):
    """Trap: the last bits of a number change with the size of the batch."""
    items = [replace(item, boxes=()) if i < 13 else item for i, item in enumerate(shapes(16, seed=3))]
    rows = run_conditions(model, items, {"box": [Edit(Identity(), mode=mode, **BOX)]}, on_missing="drop").rows
    few = rows[rows.condition == "box"]
    assert len(few) == 3 and few.same_latents.all() and few.same_output.all() and (few.kl_to_clean == 0).all()


@pytest.mark.parametrize("name", ["zero", "noise, held", "deleted", "swap", "box and swap"])
def test_a_change_is_never_called_the_same(results, name: str):
    rows = results.rows[results.rows.condition == name]
    assert not rows.same_output.any() and (rows.kl_to_clean > 0).all()


def test_what_the_model_thought_is_the_same_where_only_the_answer_cannot_see_it(results):
    by_name = dict(list(results.rows.groupby("condition")))
    assert by_name["deleted"].same_latents.all() and by_name["noise, held"].same_latents.all()
    assert not by_name["zero"].same_latents.any()


def test_one_bit_is_enough_to_differ(clean):
    def same(**changed: object) -> list[tuple[bool, bool]]:
        run = replace(clean, **changed)
        return [(row["same_latents"], row["same_output"]) for row in records("x", run, clean, {})]

    n, whole = len(ITEMS), (True, True)
    assert same() == [whole] * n
    scores, latents, text = clean.option_logprobs.clone(), clean.latents.clone(), list(clean.text)
    scores[1, 2] = torch.nextafter(scores[1, 2], torch.tensor(0.0))
    assert same(option_logprobs=scores) == [whole, (True, False), *[whole] * (n - 2)]
    latents[3, 1, 5] = torch.nextafter(latents[3, 1, 5], torch.tensor(100.0))
    assert same(unrolled=replace(clean.unrolled, latents=latents))[3] == (False, True)
    fewer = clean.steps_taken.clone()
    fewer[0] -= 1
    assert same(unrolled=replace(clean.unrolled, n_latents=fewer))[:2] == [(False, True), whole]
    text[4] += "!"
    assert same(text=tuple(text))[4] == (True, False)


def test_an_item_without_an_answer_or_with_fewer_latents_has_what_can_be_measured(clean):
    scores, latents = clean.option_logprobs.clone(), clean.latents.clone()
    scores[0], latents[1, STEPS - 1], latents[2] = float("nan"), 0.0, 0.0
    run = replace(clean, option_logprobs=scores, unrolled=replace(clean.unrolled, latents=latents))
    rows = records("x", run, clean, {})
    for key in ("letter_logprob", "margin", "kl_to_clean"):
        assert [row[key] != row[key] for row in rows] == [True, *[False] * (len(rows) - 1)]
    cosines = [row["latent_cosine_to_clean"] for row in rows]
    assert cosines[1] == pytest.approx(1, abs=1e-6), "padding after the last latent is not a latent"
    assert cosines[2] != cosines[2]
    assert not rows[0]["same_output"] and records("x", run, run, {})[0]["same_output"], "missing equals missing"


# --- items that are left out, and donors ------------------------------------------------------------------------------


def test_exactly_the_items_without_donor_or_position_are_left_out_and_listed(results):
    assert results.manifest["left_out"] == {name: sorted(ids) for name, ids in LEFT_OUT.items()}
    for name in (CLEAN, *CONDITIONS):
        assert {row["item"] for row in rows_of(results, name)} == ALL - LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", ["swap", "follow", "box and swap"])
def test_donors_come_from_all_items_that_have_the_positions(results, name: str):
    edit = next(edit for edit in CONDITIONS[name] if isinstance(edit.op, Swap))
    expected = match_donors(kept_in(name), edit.op, seed=edit.seed, pool=able_in(name))
    assert {row["item"]: row["donor"] for row in rows_of(results, name)} == expected


def test_an_item_that_has_no_donor_may_be_one_but_not_where_it_lacks_the_positions(results):
    assert "giver" in {row["donor"] for row in rows_of(results, "follow")}
    assert "giver" in {row["donor"] for row in rows_of(results, "swap")}
    assert "giver" not in {row["donor"] for row in rows_of(results, "box and swap")}


def test_a_condition_that_nothing_is_left_for_has_no_rows(model):
    conditions = {"box": [Edit(Zero(), **BOX)], "no-op": [Edit(Identity())]}
    results = run_conditions(model, [GIVER], conditions, on_missing="drop")
    assert list(results.rows.condition) == [CLEAN, "no-op"] and results.manifest["left_out"] == {"box": ["giver"]}


def test_a_missing_donor_raises_before_anything_runs(model):
    with recording(model.hf) as record, pytest.raises(DonorError, match="finds no donor for 1 of 10 items") as caught:
        run_conditions(model, ITEMS, {"zero": [Edit(Zero())], "swap": [Edit(Swap())]})
    assert record.fed == [] and "'lonely'" in str(caught.value)


def test_a_missing_position_raises_and_names_the_item(model):
    with pytest.raises(RoleError, match=r"absent in 1 of 3 items(.|\n)*giver"):
        run_conditions(model, ITEMS[:3], {"box": [Edit(Zero(), **BOX)]})


# --- a model that is edited already -----------------------------------------------------------------------------------


def test_the_models_own_edits_are_in_every_run_but_not_in_the_reference(model):
    items, own, edit = SCENES[:8], Edit(Scale(-3.0), positions=latent[0]), Edit(Swap(), positions=latent[1], seed=4)
    plain = model.generate(items)
    edited = model.edited(own)
    with recording(model.hf) as record:
        results = run_conditions(edited, items, {"swap": [edit]})
    assert [row["text"] for row in rows_of(results, CLEAN)] == list(edited.generate(items).text)
    right = ["ABCD".index(item.answer) for item in items]
    for name, run in (
        (CLEAN, edited.generate(items)),
        ("swap", edited.edited(edit).generate(items, reference=plain)),
    ):
        rows = rows_of(results, name)
        assert [row["letter_logprob"] for row in rows] == run.option_logprobs[range(8), right].tolist()
    # One prefill, then three decodings of the same length: unedited, the model's own edits alone, and the swap.
    prefills = [number for number, fed in enumerate(record.fed) if fed.shape[1] > 1]
    assert prefills == [0] and (len(record.fed) - 1) % 3 == 0
    swapped = record.fed[-((len(record.fed) - 1) // 3) :]
    first, second = swapped[0][:, 0], swapped[1][:, 0]
    donors = [plain.rows_of([next(i for i in items if i.id == row["donor"])])[0] for row in rows_of(results, "swap")]
    assert torch.equal(first, -3 * plain.latents[:, 0])
    assert torch.equal(second, plain.latents[donors, 1]), "donors give what they think unedited"
    assert not torch.equal(second, edited.generate(items).latents[donors, 1])
    assert results.manifest["model_edits"] == [own.to_json()]


def test_a_row_names_the_donor_of_its_condition_not_one_that_the_model_had(model):
    items, own, edit = SCENES[:8], Edit(Swap(), positions=latent[0], seed=0), Edit(Swap(), positions=latent[1], seed=4)
    results = run_conditions(model.edited(own), items, {"zero": [Edit(Zero(), positions=latent[2])], "swap": [edit]})
    theirs, wanted = (match_donors(items, Swap(), seed=seed) for seed in (0, 4))
    assert theirs != wanted
    assert {row["item"]: row["donor"] for row in rows_of(results, "swap")} == wanted
    for name in (CLEAN, "zero"):
        assert all(row["donor"] is None and row["outcome"] is None for row in rows_of(results, name))


# --- what is refused, and what is written down ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "error", "said"),
    [
        ({}, EditError, "no conditions were given"),
        ({"clean": [Edit(Zero())]}, EditError, "a condition 'clean' with 1 edits"),
        ({"nothing": []}, EditError, "a condition 'nothing' with 0 edits"),
        ({"two": [Edit(Swap()), Edit(Swap(), seed=1)]}, EditError, "the condition 'two' swaps 2 times"),
        ({"ok": [Edit(Zero())], "typo": [Edit(Zero(), site="hook_latnt")]}, SiteError, "hook_latent"),
        ({" ": [Edit(Zero())]}, EditError, "a condition ' ' with 1 edits"),
        ({"twice": [Edit(Zero()), Edit(Zero())]}, EditError, "is overwritten by Zero"),
        ({"void": [Edit(Noise(1.0)), Edit(Swap())]}, EditError, "'void': Noise.* is overwritten by Swap"),
        ({"gone": [Edit(Zero(), site="kv"), Edit(DeleteKV())]}, EditError, "changes keys and values that DeleteKV"),
        ({"mixed": [Edit(Zero()), Edit(Zero(), mode="held")]}, EditError, "modes free and held together"),
    ],
)
def test_conditions_that_cannot_be_are_refused_before_anything_runs(model, conditions, error, said: str):
    with recording(model.hf) as record, pytest.raises(error, match=said):
        run_conditions(model, ITEMS, conditions)
    assert record.fed == []


def test_edits_that_build_on_each_other_are_no_contradiction(model):
    composed = [Edit(Zero()), Edit(Noise(1.0))], [Edit(Zero()), Edit(Zero(), positions=latent[0], site="kv")]
    assert (
        len(run_conditions(model, ITEMS[:2], {str(number): edits for number, edits in enumerate(composed)}).rows) == 6
    )


def test_conditions_that_are_no_mapping_of_edits_are_refused(model, unchecked):
    for wrong, said in (
        ([("a", [Edit(Zero())]), ("a", [Edit(Noise(1.0))])], "needed: a mapping"),
        ({"bare": Edit(Zero())}, "the condition 'bare' is .*\n.*a sequence of edits"),
        ({"op": [Zero()]}, "the condition 'op' is .*\n.*a sequence of edits"),
    ):
        with pytest.raises(EditError, match=said):
            run_conditions(model, ITEMS, wrong)


def test_other_bad_input_is_refused(model):
    with pytest.raises(SettingError, match="on_missing='skip'"):
        run_conditions(model, ITEMS, {"zero": [Edit(Zero())]}, on_missing="skip")
    with pytest.raises(ItemError, match="cannot be graded by letter"):
        run_conditions(model, [replace(GIVER, answer=None)], {"zero": [Edit(Zero())]})


def test_the_manifest_holds_all_that_the_rows_depend_on(model, results):
    manifest = json.loads(json.dumps(results.manifest))
    assert manifest == results.manifest
    read = {name: [Edit.from_json(text) for text in texts] for name, texts in manifest["conditions"].items()}
    assert read == CONDITIONS
    expected = {
        "model": model.name, "weights": model.revision, "dtype": "torch.float32", "device": "cpu",
        "batch_size": model.batch_size, "threads": torch.get_num_threads(), "latent_steps": STEPS,
        "latent_exit": model.settings().latent_exit, "max_new_tokens": 1, "decoding": "greedy", "model_edits": [],
        "items": [item.id for item in ITEMS], "items_without_latents": [], "unparsed_clean": [],
    }  # fmt: skip
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["attention"] and manifest["environment"]["torch"] == torch.__version__


def test_items_whose_clean_answer_names_no_option_are_listed():
    silent = twins().traced
    results = run_conditions(silent, ITEMS[:3], {"no-op": [Edit(Identity())]})
    assert results.manifest["unparsed_clean"] == [item.id for item in ITEMS[:3]]
    assert not results.rows.correct.any() and results.rows.choice.isna().all()
