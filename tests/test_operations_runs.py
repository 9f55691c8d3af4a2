"""Operations on whole runs of an untrained model, against plain hooks, masks by hand, and runs with other settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismlens.data.shapes import shapes
from prismlens.errors import DonorError, EditError, SiteError
from prismlens.interventions import (
    Constant,
    Cut,
    DeleteKV,
    Edit,
    Mean,
    Noise,
    Patch,
    Repeat,
    Shuffle,
    Skip,
    Source,
    Steer,
    Swap,
    Zero,
    paper_conditions,
)
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.visibility import LayerMasks, Rule, masks
from prismlens.positions import answer, image, latent, question
from prismlens.trace import corrupt, load
from prismlens.training.architecture import tiny_config, tiny_processor
from prismlens.unrolled import Segment
from tests.plain_hooks import LAYERS, STEPS, Twins, plain_run, recording, relative, same, twins, whole

ITEMS = shapes(4, seed=3)


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


def fed(pair: Twins, *edits: Edit, items=ITEMS, reference=None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the edited run fed at each latent step, ``[batch, step, d]``, and its logits at every later forward."""
    view = pair.traced.edited(*edits)
    clean = reference or pair.traced.generate(ITEMS)
    with recording(pair.traced.hf) as record:
        view.generate(items, reference=clean)
    prefill = max(number for number, one in enumerate(record.fed) if one.shape[1] > 1)
    steps = [one[:, 0] for one in record.fed[prefill + 1 : prefill + 1 + STEPS]]
    return torch.stack(steps, 1), torch.stack(record.logits[prefill + STEPS :], 1)


# --- values of other places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["free", "held"])
def test_shuffled_latents_are_the_items_own_in_another_order(pair: Twins, mode: str) -> None:
    clean, _ = plain_run(pair, ITEMS)
    got, _ = fed(pair, Edit(Shuffle(), mode=mode, seed=1))
    orders = set()
    for row in range(len(ITEMS)):
        order = [int((clean.latents[row] == got[row, step]).all(-1).nonzero()) for step in range(STEPS)]
        assert sorted(order) == list(range(STEPS)) and all(a != b for a, b in enumerate(order))
        orders.add(tuple(order))
    assert len(orders) > 1, "another order for each item"
    alone, _ = fed(pair, Edit(Shuffle(), mode=mode, seed=1), items=ITEMS[2:3])
    assert torch.equal(alone[0], got[2])


def test_only_the_chosen_steps_are_shuffled_and_repeated(pair: Twins) -> None:
    clean, _ = plain_run(pair, ITEMS)
    swapped, _ = fed(pair, Edit(Shuffle(), positions=latent[1:], mode="held"))
    assert torch.equal(swapped, clean.latents[:, [0, 2, 1]])
    repeated, _ = fed(pair, Edit(Repeat(), mode="free"))
    assert torch.equal(repeated, clean.latents[:, [0, 0, 0]])
    from_second, _ = fed(pair, Edit(Repeat(), positions=latent[1:], mode="held"))
    assert torch.equal(from_second, clean.latents[:, [0, 1, 1]])
    with pytest.raises(EditError, match=r"Shuffle(.|\n)*at 1 position of an item"):
        fed(pair, Edit(Shuffle(), positions=latent[1]))


def test_image_tokens_can_be_shuffled_too(pair: Twins) -> None:
    site = "blocks.0.hook_resid_pre"
    with recording(pair.traced.hf) as record:
        pair.traced.edited(Edit(Shuffle(), positions=image, site=site)).generate(ITEMS[:1])
    clean, before = plain_run(pair, ITEMS[:1])
    here = image.mask(clean)[0, : clean.n_prompt]
    own, moved = before.fed[0][0, here], record.fed[-1 - len(before.fed) + 1][0, here]
    assert not torch.equal(own, moved)
    assert torch.equal(own.sort(0).values, moved.sort(0).values) and not (own == moved).all(-1).any()


# --- statistics over steps, stages, everything ------------------------------------------------------------------------


def test_means_are_those_of_the_step_the_stage_or_all(pair: Twins) -> None:
    latents = plain_run(pair, ITEMS)[0].latents.double()
    expected = {"step": latents.mean(0), "stage": latents.mean((0, 1)), "all": latents.mean((0, 1))}
    for over, mean in expected.items():
        got, _ = fed(pair, Edit(Mean(over)))
        assert relative(got.double(), mean.expand_as(latents)) < 1e-6, over
    assert Mean() == Mean("step")


def test_noise_is_in_units_of_its_own_step_or_stage(pair: Twins) -> None:
    latents = plain_run(pair, ITEMS)[0].latents.double()
    raw, _ = fed(pair, Edit(Noise(1.0), mode="held"))
    unit = raw.double() - latents
    stds = {"step": latents.std(0), "stage": latents.flatten(0, 1).std(0), "all": latents.flatten(0, 1).std(0)}
    for over, std in stds.items():
        got, _ = fed(pair, Edit(Noise(2.0, "std", over=over), mode="held"))
        assert relative(got.double() - latents, 2 * unit * std) < 1e-4, over
    default, _ = fed(pair, Edit(Noise(2.0, "std"), mode="held"))
    assert torch.equal(default, fed(pair, Edit(Noise(2.0, "std", over="stage"), mode="held"))[0])


def test_steering_is_in_units_of_the_spread_along_the_direction(pair: Twins) -> None:
    latents = plain_run(pair, ITEMS)[0].latents.double()
    direction = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    unit = direction / direction.norm()
    got, _ = fed(pair, Edit(Steer(direction, 3.0, "std"), mode="held"))
    spread = (latents @ unit).flatten().std()
    assert relative((got.double() - latents) @ unit, (3 * spread).expand(len(ITEMS), STEPS)) < 1e-4


@pytest.mark.parametrize("op", [Mean(), Noise(1.0, "std", over="step")], ids=str)
def test_statistics_of_one_item_are_refused(pair: Twins, op) -> None:
    with pytest.raises(EditError, match="fewer than two values over 'step' for latent 0 of stage 0"):
        pair.traced.edited(Edit(op)).generate(ITEMS[:1])
    pair.traced.edited(Edit(op)).generate(ITEMS[:1], reference=pair.traced.generate(ITEMS))


# --- another run, another model ---------------------------------------------------------------------------------------


def test_latents_of_another_model_are_fed_item_by_item(pair: Twins) -> None:
    other = twins(seed=9)
    theirs = other.traced.generate(ITEMS)
    source = Source.latents("other", theirs.unrolled)
    got, _ = fed(pair, Edit(Patch(source)), items=ITEMS[::-1])
    assert torch.equal(got, theirs.latents.flip(0))
    one, _ = fed(pair, Edit(Patch(source), positions=latent[1], mode="held"))
    own = plain_run(pair, ITEMS)[0].latents
    assert torch.equal(one[:, 1], theirs.latents[:, 1]), "matched by step, not by order in the role"
    assert torch.equal(one[:, [0, 2]], own[:, [0, 2]])


def test_a_patch_needs_no_clean_run_and_is_replayed(pair: Twins) -> None:
    source = Source.latents("other", twins(seed=9).traced.generate(ITEMS).unrolled)
    view = pair.traced.edited(Edit(Patch(source)))
    run = view.generate(ITEMS)
    assert run.reference is None
    view.run_with_cache(ITEMS, "resid_post", positions=latent, run=run)


def test_a_patch_of_activations_at_a_site_is_the_whole_other_run_from_there(pair: Twins) -> None:
    """Denoising at every position of the last layer's output gives the other run's logits."""
    role, site = question, "blocks.1.hook_resid_post"
    turned = [replace(item, image=item.image.transpose(0)) for item in ITEMS[:2]]
    _, cache = pair.traced.run_with_cache(turned, site, positions=role)
    source = Source.activations("turned", cache)
    with recording(pair.traced.hf) as record:
        pair.traced.edited(Edit(Patch(source), positions=role, site=site)).generate(ITEMS[:2])
    theirs = cache.flat(site)

    def put(value: torch.Tensor) -> torch.Tensor | None:
        mask = role.mask(clean)[:, : clean.n_prompt]
        return torch.where(mask[..., None], value.masked_scatter(mask[..., None], theirs), value)

    clean, before = plain_run(pair, ITEMS[:2])
    _, expected = plain_run(pair, ITEMS[:2], {0: [(site, put)]})
    assert same(record.logits, expected.logits) and not same(record.logits, before.logits)


def test_a_source_read_elsewhere_is_refused(pair: Twins) -> None:
    site = "blocks.1.hook_resid_post"
    _, cache = pair.traced.run_with_cache(ITEMS[:2], site, positions=question | image)
    source = Source.activations("wide", cache)
    with pytest.raises(EditError, match="names other positions than its source holds in 2 items"):
        pair.traced.edited(Edit(Patch(source), positions=question, site=site)).generate(ITEMS[:2])
    with pytest.raises(EditError, match=f"no values of 'blocks.0.hook_mlp_out'(.|\n)*{site}"):
        pair.traced.edited(Edit(Patch(source), positions=question, site="blocks.0.hook_mlp_out"))
    with pytest.raises(DonorError, match="there is nothing that matches"):
        pair.traced.edited(Edit(Patch(source), positions=question, site=site)).generate(ITEMS[2:])


def test_a_source_is_named_in_json_and_asked_for_again(pair: Twins) -> None:
    run = pair.traced.generate(ITEMS)
    source = Source.latents("mine", run.unrolled)
    edit = Edit(Patch(source), mode="held")
    read = Edit.from_json(edit.to_json())
    assert read == edit and hash(read) == hash(edit) and '"mine"' in edit.to_json()
    with pytest.raises(EditError, match=r"known by name and hash only(.|\n)*sources=\[source\]"):
        pair.traced.edited(read)
    other = Source.latents("mine", run.take(ITEMS[:2]).unrolled)
    assert other != source, "another content is another source"
    with pytest.raises(EditError, match="known by name and hash only"):
        pair.traced.edited(Edit.from_json(edit.to_json(), sources=[other]))
    again = Edit.from_yaml(edit.to_yaml(), sources=[other, Source.latents("mine", run.unrolled)])
    assert torch.equal(fed(pair, again)[0], run.latents)


# --- attention --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_cut_of_some_heads_is_the_mask_written_by_hand(pair: Twins) -> None:
    n_heads = pair.plain.config.text.num_attention_heads
    assert n_heads > 1
    view = pair.traced.edited(Edit(Cut(to=latent, by=answer, layers=(1,), heads=(0,))))
    run = view.generate(ITEMS)
    logits, _ = view.run_with_cache(ITEMS, "resid_post", positions=answer, run=run)
    unrolled = run.unrolled
    batch, width = unrolled.shape

    def by_hand(heads: tuple[int, ...]) -> torch.Tensor:
        full = torch.zeros(batch, n_heads, width, width, dtype=torch.bool)
        for row, segments in enumerate(unrolled.segments.tolist()):
            for q in range(width):
                for k in range(q + 1):
                    seen = segments[k] != Segment.PAD or q == k
                    cut = segments[q] == Segment.ANSWER and segments[k] == Segment.LATENT
                    for head in range(n_heads):
                        full[row, head, q, k] = seen and not (cut and head in heads)
        open_ = masks(unrolled, (), n_layers=1, n_queries=width)[0]
        layers = LayerMasks([full if layer == 1 else open_ for layer in range(LAYERS)])
        return pair.plain.step(**whole(pair, unrolled) | {"attention_mask": layers}).logits[answer.mask(unrolled)]

    assert relative(logits.flatten(0, -2), by_hand((0,))) < 1e-5
    for other in ((), (1,), tuple(range(n_heads))):
        assert relative(logits.flatten(0, -2), by_hand(other)) > 1e-4, other


def test_only_layers_with_a_rule_for_single_heads_have_a_head_axis(pair: Twins) -> None:
    run = plain_run(pair, ITEMS)[0]
    rules = [Rule(answer, latent, (0, 1)), Rule(answer, image, (1,), (True, False, False, True))]
    made = masks(run, rules, n_layers=3, n_queries=run.shape[1])
    assert [mask.shape[1] for mask in made] == [1, 4, 1]
    plain = masks(run, [rules[0]], n_layers=1, n_queries=run.shape[1])[0]
    both = masks(run, [rules[0], Rule(answer, image)], n_layers=1, n_queries=run.shape[1])[0]
    assert torch.equal(made[1][:, 1:2], plain) and torch.equal(made[1][:, 3:], both) and torch.equal(made[0], plain)


def test_a_cut_of_all_heads_is_a_cut_and_one_beyond_is_refused(pair: Twins) -> None:
    n_heads = pair.plain.config.text.num_attention_heads
    every, plain = (
        pair.traced.edited(Edit(Cut(to=image, by=latent, heads=heads))).generate(ITEMS)
        for heads in (tuple(range(n_heads)), None)
    )
    assert relative(every.latents, plain.latents) < 1e-5
    with pytest.raises(SiteError, match=f"names head {n_heads}(.|\n)*heads from 0 to {n_heads - 1}"):
        pair.traced.edited(Edit(Cut(to=latent, by=answer, heads=(n_heads,))))


# --- fewer latents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_skipping_is_a_smaller_budget(pair: Twins, n: int) -> None:
    moved = pair.traced.edited(Edit(Skip(n, keep_positions=False))).generate(ITEMS)
    smaller = pair.traced.generate(ITEMS, latent_steps=STEPS - n)
    assert moved.steps_taken.tolist() == [STEPS - n] * len(ITEMS) and moved.latent_steps == STEPS
    for name in ("input_ids", "position_ids", "segments", "steps", "latents"):
        assert torch.equal(getattr(moved.unrolled, name), getattr(smaller.unrolled, name)), name
    assert torch.equal(moved.option_logprobs.nan_to_num(9), smaller.option_logprobs.nan_to_num(9))


@pytest.mark.parametrize("mode", ["free", "held"])
@pytest.mark.parametrize("n", [1, STEPS])
def test_kept_positions_make_skipped_latents_unseen_ones(pair: Twins, n: int, mode: str) -> None:
    skipped = pair.traced.edited(Edit(Skip(n), mode=mode)).generate(ITEMS)
    hidden = pair.traced.edited(Edit(DeleteKV(), positions=latent[STEPS - n :])).generate(ITEMS)
    keep = [column for column in range(hidden.unrolled.shape[1]) if column not in range(*last_latents(hidden, n))]
    assert torch.equal(skipped.unrolled.position_ids, hidden.unrolled.position_ids[:, :, keep])
    assert torch.equal(skipped.unrolled.input_ids, hidden.unrolled.input_ids[:, keep])
    a, b = skipped.option_logprobs.nan_to_num(9), hidden.option_logprobs.nan_to_num(9)
    assert torch.allclose(a, b, atol=1e-4)
    assert skipped.latents.shape[1] == STEPS - n and torch.equal(skipped.latents, hidden.latents[:, : STEPS - n])


def last_latents(run, n: int) -> tuple[int, int]:
    """The first and one past the last column of the last n latents, which all rows have in common."""
    columns = latent.mask(run.unrolled)[0].nonzero().flatten().tolist()
    return columns[STEPS - n], columns[-1] + 1


def test_skips_add_up_meet_other_edits_and_can_be_replayed(pair: Twins) -> None:
    view = pair.traced.edited(Edit(Skip(1)), Edit(Zero(), positions=latent[-1]), Edit(Skip(1)))
    with recording(pair.traced.hf) as record:
        run = view.generate(ITEMS)
    assert run.steps_taken.tolist() == [1] * len(ITEMS) and not record.latent(0).any()
    _, cache = view.run_with_cache(ITEMS, "resid_post", positions=latent, run=run)
    assert cache["resid_post", 0].shape[1] == 1
    every = pair.traced.edited(Edit(Skip(STEPS))).generate(ITEMS)
    assert not latent.mask(every.unrolled).any() and every.steps_taken.tolist() == [0] * len(ITEMS)
    pair.traced.edited(Edit(Skip(STEPS))).run_with_cache(ITEMS, "resid_post", positions=answer)


def test_the_last_latent_of_a_shorter_block_is_another_step_and_no_donor(pair: Twins) -> None:
    with pytest.raises(DonorError, match="nothing that matches latent 1 of stage 0"):
        pair.traced.edited(Edit(Skip(1)), Edit(Swap(), positions=latent[-1])).generate(ITEMS)
    pair.traced.edited(Edit(Skip(1)), Edit(Swap(), positions=latent)).generate(ITEMS)


def test_skips_that_cannot_be_are_refused(pair: Twins) -> None:
    with pytest.raises(EditError, match=f"{STEPS + 1} latents are to be skipped of {STEPS}"):
        pair.traced.edited(Edit(Skip(STEPS)), Edit(Skip(1))).generate(ITEMS)
    with pytest.raises(EditError, match="one kind"):
        pair.traced.edited(Edit(Skip(1)), Edit(Skip(1, keep_positions=False))).generate(ITEMS)
    itself = twins(latent_exit="end_token", latent_close=[])
    with pytest.raises(EditError, match="exit rule 'end_token'"):
        itself.traced.edited(Edit(Skip(1))).generate(ITEMS)
    processor = tiny_processor(start=False)
    config = tiny_config(processor.tokenizer, width=64, layers=LAYERS, latent_steps=STEPS, latent_entry="emitted")
    never = load((LVRForConditionalGeneration(config).eval(), processor))
    never.hf.lm_head.weight.data[config.lvr_start_id] = 0.0
    assert not never.generate(ITEMS, max_new_tokens=2).steps_taken.any()
    with pytest.raises(EditError, match="4 items that never enter latent mode"):
        never.edited(Edit(Skip(1))).generate(ITEMS, max_new_tokens=2)


# --- published conditions, interrupts ---------------------------------------------------------------------------------


def test_the_published_conditions_are_raw_noise_zeros_and_a_pool_of_64(pair: Twins) -> None:
    conditions = paper_conditions(seed=2)
    assert list(conditions) == ["zero", "noise 0.1 raw", "noise 0.3 raw", "noise 1 raw", "swap"]
    every = [edit for edits in conditions.values() for edit in edits]
    assert all((e.site, e.positions, e.mode, e.seed) == ("hook_latent", latent, "free", 2) for e in every)
    assert [e.op.sigma for e in every if isinstance(e.op, Noise)] == [0.1, 0.3, 1.0]
    swap = every[-1].op
    assert isinstance(swap, Swap) and (swap.donor, swap.image, swap.pool) == ("anyone", "any", 64)


def test_an_interrupt_while_a_clean_run_is_made_leaves_the_model_as_it_was(pair: Twins, monkeypatch) -> None:
    clean = plain_run(pair, ITEMS)[0]

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prismlens.trace.edited.prepared", interrupt)
    with pytest.raises(KeyboardInterrupt), corrupt(pair.traced, op=Constant(torch.ones(64))):
        pair.traced.generate(ITEMS)
    monkeypatch.undo()
    assert pair.traced.active_edits == () and torch.equal(pair.traced.generate(ITEMS).latents, clean.latents)
