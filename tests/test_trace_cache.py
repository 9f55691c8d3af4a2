"""`run_with_cache` against what plain hooks saw while an untraced twin decoded step by step."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.data.shapes import shapes
from prismlens.errors import RoleError, SiteError
from prismlens.interventions import Edit, Noise, Scale, Swap, Zero
from prismlens.positions import answer, image, latent, lead, question
from prismlens.unrolled import Segment, Unrolled
from tests.plain_hooks import EVERY, LAYERS, NAMES, STEPS, Twins, plain_run, reading, relative, twins

ITEMS = shapes(7, seed=3)
WIDTH = 64
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture(scope="module", params=[1, 7], ids=["alone", "padded batch"])
def items(request):
    return ITEMS[: request.param]


@pytest.fixture(scope="module")
def seen(pair: Twins, items) -> tuple[Unrolled, Mapping[str, Tensor], Tensor]:
    """The plain run, every site's values in it, and its logits, ``[batch, column, ...]``."""
    with reading(pair.plain, NAMES) as kept:
        run, record = plain_run(pair, items)
    latents = [value for value in kept.pop("hook_latent")]
    by_column = {name: torch.cat(values, 1) for name, values in kept.items()}
    like = by_column["blocks.0.hook_resid_pre"]
    by_column["hook_latent"] = torch.full_like(like, float("nan"))
    by_column["hook_latent"][:, run.n_prompt : run.n_prompt + STEPS] = torch.cat(latents, 1)
    logits = torch.full((*like.shape[:2], record.logits[0].shape[-1]), float("nan"))
    logits[:, run.n_prompt - 1 :] = torch.stack(record.logits, 1)
    return run, by_column, logits


def columns_of(run: Unrolled, row: int, segment: Segment) -> list[int]:
    return (run.segments[row] == segment).nonzero().flatten().tolist()


ROLES = {
    "latent": (latent, lambda run, row: columns_of(run, row, Segment.LATENT)),
    "latent[1]": (latent[1], lambda run, row: [run.n_prompt + 1]),
    "latent[-1]": (latent[-1], lambda run, row: [run.n_prompt + STEPS - 1]),
    "latent.source": (latent.source, lambda run, row: range(run.n_prompt - 1, run.n_prompt + STEPS - 1)),
    "latent.end": (latent.end, lambda run, row: [run.n_prompt + STEPS]),
    "answer[:2]": (answer[:2], lambda run, row: [run.n_prompt + STEPS, run.n_prompt + STEPS + 1]),
    "lead[-1]": (lead[-1], lambda run, row: [run.n_prompt - 1]),
    "question[-1]": (question[-1], lambda run, row: columns_of(run, row, Segment.QUESTION)[-1:]),
    "question": (question, lambda run, row: columns_of(run, row, Segment.QUESTION)),
    "image": (image, lambda run, row: columns_of(run, row, Segment.IMAGE)),
}
"""Roles, and the columns that they name in a row, spelled out."""


@pytest.mark.parametrize("role", ROLES)
def test_values_are_those_that_plain_hooks_saw_step_by_step(pair, items, seen, role: str):
    run, expected, _ = seen
    positions, columns = ROLES[role]
    names = NAMES if role.startswith("latent") and "." not in role else NAMES[1:]
    _, cache = pair.traced.run_with_cache(items, names, positions=positions)
    assert list(cache) == names
    where = [list(columns(run, row)) for row in range(len(items))]
    for name in names:
        values = torch.cat([expected[name][row, where[row]] for row in range(len(items))])
        assert relative(cache.flat(name), values) < TOLERANCE, name
        regular = len({len(one) for one in where}) == 1
        shape = (len(items), len(where[0])) if regular else (sum(map(len, where)),)
        assert cache[name].shape == (*shape, *values.shape[1:]), name
        assert torch.equal(cache[name].flatten(0, len(shape) - 1), cache.flat(name))
    assert (cache.positions.rows.tolist(), cache.positions.columns.tolist()) == (
        [row for row, one in enumerate(where) for _ in one], [column for one in where for column in one],
    )  # fmt: skip


def test_the_roles_of_the_test_are_regular_and_not(pair, seen):
    """Both shapes above have to occur: questions differ in length, latents do not."""
    run = seen[0]
    if len(run.items) > 1:
        counts = {name: {len(list(columns(run, row))) for row in range(7)} for name, (_, columns) in ROLES.items()}
        assert len(counts["question"]) > 1 and len(counts["latent"]) == 1


def test_without_positions_every_column_that_is_not_padding_is_kept(pair, items, seen):
    run, expected, _ = seen
    _, cache = pair.traced.run_with_cache(items, "resid_post")
    width = expected["blocks.0.hook_resid_post"].shape[1]
    was_run = run.valid[:, :width]
    for name in cache:
        values = cache.flat(name)
        assert len(values) == int(run.valid.sum())
        kept = values[(cache.positions.columns < width)]
        assert relative(kept, expected[name][was_run]) < TOLERANCE


@pytest.mark.parametrize("role", ["latent", "latent.source", "answer[:2]", "lead[-1]"])
def test_logits_are_those_at_the_positions(pair, items, seen, role: str):
    run, _, expected = seen
    positions, columns = ROLES[role]
    logits, cache = pair.traced.run_with_cache(items, "resid_post", positions=positions)
    wanted = torch.stack([expected[row, list(columns(run, row))] for row in range(len(items))])
    assert logits.shape == wanted.shape and relative(logits, wanted) < TOLERANCE
    assert "logits" not in cache


def test_the_latents_kept_are_the_vectors_fed(pair, items):
    run = pair.traced.generate(items)
    _, cache = pair.traced.run_with_cache(items, ["hook_latent", "blocks.0.hook_resid_pre"], positions=latent, run=run)
    assert torch.equal(cache["hook_latent"], run.latents)
    assert torch.equal(cache["blocks.0.hook_resid_pre"], run.latents)
    _, before = pair.traced.run_with_cache(items, "unembed.hook_in", positions=latent.source, run=run)
    assert relative(before["unembed.hook_in"], run.latents) < TOLERANCE


def test_batches_of_three_give_the_rows_of_one_batch_in_order(pair):
    small = replace(pair.traced, batch_size=3)
    for positions in (latent, image):
        logits, whole = pair.traced.run_with_cache(ITEMS, "resid_post", positions=positions)
        again, parts = small.run_with_cache(ITEMS, "resid_post", positions=positions)
        assert relative(again, logits) < TOLERANCE
        assert torch.equal(parts.positions.rows, whole.positions.rows)
        assert all(relative(parts[name], whole[name]) < TOLERANCE for name in whole)


@pytest.mark.parametrize(
    "edit",
    [
        Edit(op=Scale(-2.0), positions=latent[0]),
        Edit(op=Scale(-2.0), positions=latent[0], mode="held"),
        Edit(op=Zero(), positions=latent[1], site="blocks.1.hook_resid_mid"),
        Edit(op=Zero(), positions=image, site="blocks.0.hook_resid_pre"),
        Edit(op=Noise(1.0), positions=question | latent, site="blocks.1.hook_resid_pre"),
        Edit(op=Swap(), positions=latent[1:], site="kv"),
    ],
    ids=str,
)
def test_under_an_edit_the_cache_holds_what_the_edited_run_saw(pair, edit: Edit):
    view = pair.traced.edited(edit)
    names = [f"blocks.{layer}.hook_{part}" for layer in range(LAYERS) for part in ("attn_out", "mlp_out")]
    with reading(pair.traced.hf, names) as kept:
        run = view.generate(ITEMS)
    logits, cache = view.run_with_cache(ITEMS, names, positions=latent | answer[:2], run=run)
    _, clean = pair.traced.run_with_cache(ITEMS, names, positions=latent | answer[:2])
    steps = STEPS + 2
    for name in names:
        prefill = max(number for number, value in enumerate(kept[name]) if value.shape[1] > 1)
        seen = torch.cat(kept[name][prefill + 1 :][:steps], 1)
        assert relative(cache[name], seen) < TOLERANCE, name
        assert relative(clean[name], seen) > 1e-3 or name == "blocks.0.hook_attn_out", name
    assert logits.shape[:2] == (len(ITEMS), steps)


@pytest.mark.parametrize(
    ("names_filter", "count"),
    [
        (None, len(NAMES)),
        ("blocks.1.hook_mlp_out", 1),
        ("resid_post", LAYERS),
        ("k", LAYERS),
        ("pattern", LAYERS),
        (["resid_mid", "hook_latent"], LAYERS + 1),
        (lambda name: name.startswith("blocks.2.hook_"), 7),
    ],
)
def test_a_names_filter_keeps_what_it_names_and_nothing_else(pair, names_filter, count: int):
    _, cache = pair.traced.run_with_cache(ITEMS[:2], names_filter, positions=latent)
    assert len(cache) == count and list(cache) == [name for name in EVERY if name in cache]
    axes = (0, 2) if names_filter == "pattern" else (0, 1)
    assert all([cache[name].shape[axis] for axis in axes] == [2, STEPS] for name in cache)


@pytest.mark.parametrize("names_filter", ["resid_pots", ["nothing"], [], lambda name: False])
def test_a_filter_that_matches_nothing_is_an_error(pair, names_filter):
    with pytest.raises(SiteError, match="names_filter"):
        pair.traced.run_with_cache(ITEMS[:1], names_filter)


def test_a_role_that_an_item_lacks_is_an_error_that_names_the_item(pair):
    with pytest.raises(RoleError, match=rf"absent in 1 of 1 items: '{ITEMS[0].id}'"):
        pair.traced.run_with_cache(ITEMS[:1], "resid_post", positions=latent[STEPS])


def test_a_cache_is_read_by_full_and_short_names_and_says_what_it_lacks(pair):
    _, cache = pair.traced.run_with_cache(ITEMS[:2], ["resid_post", "k"], positions=latent)
    assert isinstance(cache, ActivationCache)
    assert torch.equal(cache["resid_post", 1], cache["blocks.1.hook_resid_post"])
    assert cache["k", 2] is not None and cache["k", 2].shape == (2, STEPS, 1, WIDTH // 2)
    assert ("resid_post", 1) in cache and "blocks.0.attn.hook_k" in cache
    for absent in ("blocks.0.hook_mlp_out", ("mlp_out", 0), ("resid_post", LAYERS), "nothing", ("nothing", 0)):
        assert absent not in cache
        with pytest.raises(SiteError):
            cache[absent]
    with pytest.raises(
        SiteError, match=r"holds no 'blocks.0.hook_mlp_out'\n.*blocks.0.attn.hook_k, blocks.0.hook_resid"
    ):
        cache["mlp_out", 0]


@pytest.mark.parametrize("positions", [None, latent | question[-1], latent])
def test_latents_are_kept_with_one_row_a_latent_whatever_else_is_selected(pair, positions):
    run = pair.traced.generate(ITEMS)
    _, cache = pair.traced.run_with_cache(ITEMS, ["hook_latent", "resid_pre"], positions=positions, run=run)
    assert torch.equal(cache["hook_latent"], run.latents)
    where = cache.where("hook_latent")
    assert torch.equal(
        cache.flat("hook_latent"), run.latents[where.rows, run.unrolled.steps[where.rows, where.columns]]
    )
    selected = run.unrolled.steps[cache.positions.rows, cache.positions.columns] >= 0
    assert torch.equal(cache.flat("blocks.0.hook_resid_pre")[selected], cache.flat("hook_latent"))


def test_latents_asked_for_at_question_positions_are_an_error(pair):
    _, cache = pair.traced.run_with_cache(ITEMS[:2], None, positions=question)
    assert "hook_latent" not in cache and list(cache) == NAMES[1:] and len(cache) == len(NAMES) - 1
    with pytest.raises(SiteError, match=r"holds no 'hook_latent'\n(.*\n)*.*none of the positions is a latent"):
        cache["hook_latent"]
