"""Sharing prompts and batches: what runs how often, what no layout may change, and edits of the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch

import prismlens.experiment.plan as plan_module
import prismlens.experiment.unit as unit_module
from prismlens.data.shapes import shapes
from prismlens.errors import EditError, RoleError, SettingError
from prismlens.experiment import CLEAN, run_conditions
from prismlens.experiment.plan import cache_bytes, image_tokens, longest, make_plan
from prismlens.experiment.unit import Units
from prismlens.experiment.variants import variants
from prismlens.interventions import Cut, DeleteKV, Edit, Identity, Mean, Noise, Scale, Swap, Zero
from prismlens.positions import answer, image, latent, options, question
from prismlens.trace import PrismModel, load
from tests.test_experiment import talking

ITEMS = shapes(10, seed=3)
BLOCK = "blocks.0.hook_resid_pre"
LATENTS = {
    "zero": [Edit(Zero())],
    "mean": [Edit(Mean())],
    "noise": [Edit(Noise(2.0, unit="std"))],
    "noise, held": [Edit(Noise(2.0, unit="std"), mode="held")],
    "swap": [Edit(Swap())],
    "swap, keys and values": [Edit(Swap(), site="kv")],
    "deleted": [Edit(DeleteKV())],
    "late": [Edit(Scale(0.5), positions=answer[0], site="blocks.1.hook_resid_post")],
}
"""None of these touches the prompt."""
PROMPT = {
    "image": [Edit(Scale(-1.0), positions=image, site=BLOCK)],
    "keys and values": [Edit(Zero(), positions=question, site="kv")],
    "blind question": [Edit(Cut(to=image, by=question))],
    "blind question, held": [Edit(Cut(to=image, by=question), mode="held")],
    "both": [Edit(Zero()), Edit(Scale(0.0), positions=options, site="blocks.1.hook_resid_post")],
    "one token": [Edit(Scale(-1.0), positions=options[-1], site="blocks.1.hook_resid_post")],
}
"""All of these do, by a value or by who sees whom."""
NO_OPS = {
    "free": [Edit(Identity())],
    "held": [Edit(Identity(), mode="held")],
    "keys and values": [Edit(Identity(), site="kv")],
    "image": [Edit(Identity(), positions=image, site=BLOCK)],
    "image, held": [Edit(Identity(), positions=image, site=BLOCK, mode="held")],
    "scale 1": [Edit(Scale(1.0))],
    "answer": [Edit(Identity(), positions=answer[0], site="blocks.1.hook_resid_post")],
}


@dataclass
class Count:
    """Forwards over prompts, over single columns, and of the vision tower; and the rows of each."""

    prompts: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


@contextmanager
def counted(model: PrismModel) -> Iterator[Count]:
    """Counts with plain hooks while it is open."""
    count = Count()

    def language(module, args, kwargs, output) -> None:
        rows, columns = kwargs["inputs_embeds"].shape[:2]
        (count.prompts if columns > 1 else count.columns).append(rows)

    hooks = [
        model.hf.model.language_model.register_forward_hook(language, with_kwargs=True),
        model.hf.model.visual.register_forward_hook(
            lambda module, args, kwargs, output: count.images.append(len(kwargs["grid_thw"])), with_kwargs=True
        ),
    ]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def model() -> PrismModel:
    return talking()


def by_condition(results) -> dict[str, list[dict]]:
    rows = results.rows.astype(object)
    rows = rows.where(rows.notna(), None)
    return {str(name): part.to_dict("records") for name, part in rows.groupby("condition", sort=False)}


def scores(rows: list[dict]) -> torch.Tensor:
    return torch.tensor([row["option_logprobs"] for row in rows])


# --- what runs how often ----------------------------------------------------------------------------------------------


def test_a_prompt_and_its_image_run_once_however_many_conditions_there_are(model):
    with counted(model) as count:
        run_conditions(model, ITEMS, LATENTS, batch_rows=8)  # units of 8 and 2 items, one condition a batch
    assert sorted(count.images) == [2, 8]
    assert sorted(count.prompts) == [2, 2, 8, 8], "one prefill, and one replay for all clean values together"
    steps = len(count.columns) / (2 * (1 + len(LATENTS)))
    assert steps == int(steps) <= 6 and set(count.columns) == {2, 8}


def test_clean_values_are_read_in_one_replay_and_only_where_an_edit_needs_them(model):
    without = {"zero": LATENTS["zero"], "deleted": LATENTS["deleted"]}
    with counted(model) as count:
        run_conditions(model, ITEMS, without, batch_rows=10)
    assert count.prompts == [10]
    many = {f"swap {seed}": [Edit(Swap(), seed=seed)] for seed in range(4)}
    many |= {f"std {s}": [Edit(Noise(float(s), unit="std"), positions=latent[1:])] for s in range(1, 4)}
    with counted(model) as count:
        run_conditions(model, ITEMS, many, batch_rows=10)
    assert count.prompts == [10], "what is fed back is what the run recorded"
    many |= {f"slot {seed}": [Edit(Swap(), site="kv", seed=seed)] for seed in range(2)}
    with counted(model) as count:
        run_conditions(model, ITEMS, many, batch_rows=10)
    assert count.prompts == [10, 10]


def test_only_a_condition_that_touches_the_prompt_gets_a_forward_of_its_own(model):
    with counted(model) as count:
        run_conditions(model, ITEMS, {**LATENTS, **PROMPT}, batch_rows=10)
    assert count.prompts == [10, 10] + [10] * len(PROMPT) and count.images == [10]


def test_conditions_share_a_batch(model):
    with counted(model) as count:
        found = run_conditions(model, ITEMS, LATENTS, batch_rows=40)
    assert found.manifest["plan"]["slots"] == 4 and set(count.columns) == {40}
    with counted(model) as alone:
        run_conditions(model, ITEMS, LATENTS, batch_rows=10)
    assert len(alone.columns) > 2.5 * len(count.columns)


def test_a_prefix_that_does_not_fit_is_run_again_and_nothing_else_changes(model, monkeypatch):
    kept = run_conditions(model, ITEMS, LATENTS, batch_rows=5)
    monkeypatch.setattr(unit_module, "CACHE_BYTES", 0)
    with counted(model) as count:
        again = run_conditions(model, ITEMS, LATENTS, batch_rows=5)
    assert count.images == [5] * 4 and again.rows.equals(kept.rows)


# --- an edit of the prompt is never lost ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [7, 30])
def test_edits_of_the_prompt_do_what_they_do_alone(model, batch_rows: int):
    rows = by_condition(run_conditions(model, ITEMS, {**PROMPT, **LATENTS}, batch_rows=batch_rows))
    clean = model.generate(ITEMS)
    for name, edits in {**PROMPT, **LATENTS}.items():
        alone = model.edited(*edits).generate(ITEMS, reference=clean)
        assert scores(rows[name]).numpy() == pytest.approx(alone.option_logprobs.numpy(), abs=1e-4), name
        assert [row["text"] for row in rows[name]] == list(alone.text)
        if name != "late":  # the text is over before this model would look back
            assert float((alone.option_logprobs - clean.option_logprobs).abs().max()) > 1e-3, f"{name} has to matter"


def test_a_model_that_is_edited_in_the_prompt_stays_so_in_every_condition(model):
    own = Edit(Scale(-1.0), positions=image, site=BLOCK)
    edited, conditions = model.edited(own), {"zero": [Edit(Zero())], "no-op": [Edit(Identity())]}
    rows = by_condition(run_conditions(edited, ITEMS, conditions, batch_rows=20))
    for name, view in ((CLEAN, edited), ("zero", edited.edited(Edit(Zero())))):
        alone = view.generate(ITEMS)
        assert scores(rows[name]).numpy() == pytest.approx(alone.option_logprobs.numpy(), abs=1e-4), name
    assert all(row["same_output"] and row["same_latents"] for row in rows["no-op"])
    assert not torch.allclose(scores(rows[CLEAN]), model.generate(ITEMS).option_logprobs, atol=1e-3)


def test_a_role_that_names_the_prompt_only_afterwards_is_an_error(model):
    """While the model writes, nobody knows that the token before the answer will have been this one."""
    with pytest.raises((EditError, RoleError)):
        run_conditions(model, ITEMS, {"source": [Edit(Zero(), positions=latent.source, site=BLOCK)]}, batch_rows=20)


# --- what no layout may change ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "batch_rows"), [(1, 1), (2, 1), (1, 9), (3, 6), (5, 5), (7, 21), (10, 3), (10, 7), (10, 70), (10, 4000)]
)
def test_a_no_op_is_equal_to_the_last_bit_in_every_layout(model, n: int, batch_rows: int):
    others = {"zero": [Edit(Zero())], "deleted": [Edit(DeleteKV())]}
    rows = by_condition(run_conditions(model, ITEMS[:n], {**NO_OPS, **others}, batch_rows=batch_rows))
    clean = scores(rows[CLEAN])
    for name in NO_OPS:
        assert all(row["same_output"] and row["same_latents"] for row in rows[name]), name
        assert torch.equal(scores(rows[name]), clean), name
    assert not any(row["same_output"] for row in rows["zero"])


def test_every_layout_gives_the_same_rows_but_for_rounding(model):
    first, *rest = [run_conditions(model, ITEMS, {**LATENTS, **PROMPT}, batch_rows=rows).rows for rows in (10, 3, 33)]
    for other in rest:
        for column in ("item", "condition", "choice", "text", "donor", "outcome", "steps_taken"):
            assert list(other[column].fillna("")) == list(first[column].fillna("")), column
        for column in ("letter_logprob", "margin", "kl_to_clean", "latent_cosine_to_clean"):
            assert other[column].to_numpy() == pytest.approx(first[column].to_numpy(), abs=2e-4), column


def test_nothing_that_is_done_to_latents_changes_a_bit_where_the_answer_cannot_see_them():
    bypass = load("tiny/bypass")
    found = run_conditions(bypass, shapes(8, seed=1), LATENTS, batch_rows=32, on_missing="drop")
    rows = found.rows[~found.rows.condition.isin([CLEAN, "late"])]
    assert found.manifest["plan"]["slots"] == 4 and len(rows) and rows.same_output.all()


def test_where_a_row_depends_on_its_place_conditions_run_one_at_a_time(model, monkeypatch):
    step = type(model.hf).step

    def crooked(self, *args, **kwargs):
        out = step(self, *args, **kwargs)
        tilt = 1 + 1e-5 * torch.arange(len(out.logits))[:, None, None]
        return replace(out, hidden=out.hidden * tilt, latent=out.latent * tilt)

    wanted = {**NO_OPS, "zero": [Edit(Zero())]}
    assert run_conditions(model, ITEMS, wanted, batch_rows=40).manifest["plan"]["slots"] == 4
    monkeypatch.setattr(type(model.hf), "step", crooked)
    found = run_conditions(model, ITEMS, wanted, batch_rows=40)
    assert found.manifest["plan"]["slots"] == 1
    rows = by_condition(found)
    assert all(row["same_output"] and row["same_latents"] for name in NO_OPS for row in rows[name])


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_cache_is_counted_as_it_is(model):
    """3 layers x 2 x (heads x size) numbers of 4 bytes a column, and the prefix of a unit says the same."""
    text = model.hf.config.text
    size = text.hidden_size // text.num_attention_heads
    assert cache_bytes(model.hf, 7) == 3 * 2 * text.num_key_value_heads * size * 7 * 4
    units = Units(model, ITEMS, make_plan(model, ITEMS, 1, None))
    prefix = units._prefix(0)
    held = prefix.n_bytes - prefix.vision["image_features"].nbytes
    assert held == len(ITEMS) * cache_bytes(model.hf, prefix.run.n_prompt)


def test_the_longest_sequence_is_known_before_anything_runs(model):
    prompt = model.processor(ITEMS)
    assert [image_tokens(model.processor, item) for item in ITEMS] == prompt.grids.prod(1).tolist()
    run = model.generate(ITEMS)
    assert run.unrolled.n_prompt == prompt.input_ids.shape[1]
    # prompt, 3 latents, 2 forced ids and the marker, one token of text and one to end with
    assert longest(model, ITEMS) == prompt.input_ids.shape[1] + 3 + 2 + 1 + 1 + 1 >= run.unrolled.shape[1]


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, (1, 1)), (4, (4, 1)), (10, (10, 1)), (29, (10, 2)), (50, (10, 4)), (999, (10, 8))]
)
def test_memory_decides_how_many_rows_there_are(model, monkeypatch, rows: int, expected: tuple[int, int]):
    """8 conditions of 10 items: as many in a batch as fit, and evenly many in each."""
    monkeypatch.setattr(plan_module, "CACHE_BYTES", rows * cache_bytes(model.hf, longest(model, ITEMS)) + 1)
    plan = make_plan(model, ITEMS, 8, None)
    assert (plan.unit_items, plan.slots) == expected and plan.rows * plan.bytes_per_row <= plan_module.CACHE_BYTES


def test_units_cover_the_items_and_the_models_batch_bounds_them(model):
    plan = make_plan(replace(model, batch_size=4), ITEMS, 3, None)
    assert plan.units == (slice(0, 4), slice(4, 8), slice(8, 10)) and plan.slots == 3
    found = run_conditions(replace(model, batch_size=4), ITEMS, {"zero": [Edit(Zero())]})
    assert found.manifest["plan"]["unit_items"] == 4


@pytest.mark.parametrize("rows", [0, -1, 2.5, True, "10"])
def test_other_numbers_of_rows_are_refused(model, unchecked, rows):
    with pytest.raises(SettingError, match=f"batch_rows={rows!r}"):
        run_conditions(model, ITEMS, {"zero": [Edit(Zero())]}, batch_rows=rows)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_are_a_column_and_what_draws_nothing_runs_once(model):
    found = run_conditions(model, ITEMS, LATENTS, seeds=[3, 1], batch_rows=20)
    seen = {str(name): list(dict.fromkeys(rows.seed.astype(object))) for name, rows in found.rows.groupby("condition")}
    drawn = {"noise", "noise, held", "swap", "swap, keys and values"}
    assert {name for name, values in seen.items() if values == [3, 1]} == drawn
    assert all(len(values) == 1 and str(values[0]) == "<NA>" for name, values in seen.items() if name not in drawn)
    assert found.rows.groupby(["condition", "seed"], dropna=False).size().eq(len(ITEMS)).all()
    for seed in (3, 1):
        fixed = {name: [replace(edits[0], seed=seed)] for name, edits in LATENTS.items()}
        alone = run_conditions(model, ITEMS, fixed, batch_rows=20).rows
        for name in drawn:
            mine = found.rows[(found.rows.condition == name) & (found.rows.seed == seed)]
            theirs = alone[alone.condition == name]
            assert set(theirs.seed) == {seed} and list(mine.donor.fillna("")) == list(theirs.donor.fillna(""))
            assert mine.letter_logprob.to_numpy() == pytest.approx(theirs.letter_logprob.to_numpy(), abs=1e-4)
    noise = found.rows[found.rows.condition == "noise"].pivot(index="item", columns="seed", values="letter_logprob")
    assert (noise[3] != noise[1]).all()


def test_seeds_that_would_make_two_draws_one_are_refused():
    two = {"two": [Edit(Noise(1.0), seed=0), Edit(Noise(1.0), positions=latent[0], seed=1)]}
    assert variants(two, None)[0].seed is None
    with pytest.raises(EditError, match=r"'two' has edits of the seeds 0, 1, and seeds=\[5\]"):
        variants(two, [5])
    mixed = {"mixed": [Edit(Zero(), seed=7), Edit(Noise(1.0), positions=latent[0], seed=1)]}
    (one,) = variants(mixed, [5])
    assert one.seed == 5 and [edit.seed for edit in one.edits] == [5, 5]
    for bad in ([], [1, 1]):
        with pytest.raises(SettingError, match="different whole numbers"):
            variants(mixed, bad)
