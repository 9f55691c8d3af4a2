"""Structural edits that would hide nothing are errors, and a replay takes its clean values from where the run did."""

from dataclasses import replace

import pytest
import torch

from prismlens.corruption import ELSEWHERE, SLOT, VECTOR, part_of, removes
from prismlens.data.shapes import shapes
from prismlens.errors import EditError, PrismlensError, SiteError
from prismlens.interventions import Cut, DeleteKV, Edit, Mean, Noise, Swap, Zero
from prismlens.models.answers import chosen_letter
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.positions import answer, image, latent, question
from prismlens.trace import PrismModel, load
from prismlens.training.architecture import initialise, tiny_config, tiny_processor

ITEMS = shapes(12, seed=5)


@pytest.fixture(scope="module")
def model() -> PrismModel:
    processor = tiny_processor(start=True)
    hf = LVRForConditionalGeneration(
        tiny_config(processor.tokenizer, layers=2, latent_steps=3, latent_close=[9, 10])
    ).eval()
    initialise(hf, 0)
    return replace(load((hf, processor)), max_new_tokens=3)


@pytest.mark.parametrize(
    "op",
    [
        Cut(to=latent, by=answer.first),
        Cut(to=latent, by=answer.source),
        Cut(to=image, by=latent.source),
        Cut(to=answer, by=image),
    ],
)
def test_a_cut_that_could_not_act_is_an_error(model: PrismModel, op: Cut):
    with pytest.raises(PrismlensError, match=ITEMS[0].id):
        model.edited(Edit(op)).generate(ITEMS[:2])


def test_deleting_what_comes_too_late_is_an_error(model: PrismModel):
    with pytest.raises(PrismlensError, match=ITEMS[0].id):
        model.edited(Edit(DeleteKV(), positions=answer.first)).generate(ITEMS[:2])


def test_a_layer_that_does_not_exist_is_refused(model: PrismModel):
    with pytest.raises(SiteError, match="names layer 99"):
        model.edited(Edit(Cut(to=latent, by=answer, layers=(99,))))


@pytest.mark.parametrize("op", [Cut(to=latent, by=answer), Cut(to=image, by=latent), Cut(to=image, by=answer)])
def test_a_cut_that_acts_changes_the_answers_scores(model: PrismModel, op: Cut):
    clean, cut = model.generate(ITEMS[:2]), model.edited(Edit(op)).generate(ITEMS[:2])
    assert not torch.equal(clean.unrolled.input_ids, cut.unrolled.input_ids) or not torch.equal(
        clean.option_logprobs.nan_to_num(0.5), cut.option_logprobs.nan_to_num(0.5)
    )


def test_cutting_answer_from_latent_is_deleting_the_latents_for_the_answer(model: PrismModel):
    cut = model.edited(Edit(Cut(to=latent, by=answer))).generate(ITEMS[:3])
    deleted = model.edited(Edit(DeleteKV())).generate(ITEMS[:3])
    assert torch.equal(cut.unrolled.input_ids, deleted.unrolled.input_ids)
    assert torch.equal(cut.option_logprobs.nan_to_num(0.5), deleted.option_logprobs.nan_to_num(0.5))


@pytest.mark.parametrize("op", [Swap(), Mean(), Noise(1.0, unit="std")])
def test_a_replay_uses_the_reference_of_its_run(model: PrismModel, op):
    clean = model.generate(ITEMS)
    view = model.edited(Edit(op))
    run = view.generate(ITEMS[:4], reference=clean)
    _, cache = view.run_with_cache(ITEMS[:4], "unembed.hook_in", positions=latent.source, run=run)
    again = cache["unembed.hook_in"]
    assert float((again - run.latents).abs().max() / run.latents.abs().max()) < 1e-4
    with pytest.raises(PrismlensError, match="replay's states differ"):
        view.run_with_cache(
            ITEMS[:4], "resid_post", positions=latent, run=replace(run, reference=clean.take(ITEMS[:4]))
        )


@pytest.mark.parametrize(
    ("edit", "part", "all_gone"),
    [
        (Edit(Zero()), VECTOR, True),
        (Edit(Zero(), positions=latent[0]), VECTOR, False),
        (Edit(Noise(1.0)), VECTOR, False),
        (Edit(Swap(donor="same-answer")), VECTOR, False),
        (Edit(Zero(), site="kv"), SLOT, True),
        (Edit(Cut(to=latent, by=answer)), SLOT, True),
        (Edit(Cut(to=latent, by=answer, layers=(1,))), SLOT, False),
        (Edit(Cut(to=image, by=answer)), ELSEWHERE, False),
        (Edit(Zero(), positions=question, site="blocks.1.hook_resid_post"), ELSEWHERE, False),
    ],
)
def test_what_a_condition_is_evidence_for(edit: Edit, part: str, all_gone: bool):
    assert part_of([edit]) == part and removes([edit]) is all_gone


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("(B)", "B"), ("B.", "B"), ("C) red", "C"), ("A red star is on the left, so B", None), ("Blue", None)],
)
def test_a_letter_without_a_tag_has_to_stand_alone(text: str, letter: str | None):
    assert chosen_letter(text, "ABCD") == letter


def test_an_edit_error_names_the_fix(model: PrismModel):
    with pytest.raises(EditError, match="fix:"):
        model.edited(Edit(Cut(to=latent, by=answer.source))).generate(ITEMS[:1])
