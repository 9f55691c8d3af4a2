"""Edits on whole runs: each takes effect exactly where and when its role says, or raises; the model is given back."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens import trace
from prismlens.data.shapes import shapes
from prismlens.errors import EditError, RoleError, SiteError
from prismlens.interventions import Cut, DeleteKV, Edit, Identity, Noise, Scale, Swap, Zero
from prismlens.interventions.operation import Operation
from prismlens.models.lvr import StepOutput
from prismlens.models.visibility import LayerMasks
from prismlens.positions import Role, answer, image, latent, lead, question
from prismlens.trace import PrismModel, Run, corrupt
from prismlens.unrolled import Segment, Unrolled
from tests.plain_hooks import LAYERS, NAMES, STEPS, Record, Twins, plain_run, recording, relative, same, twins, whole

ITEMS = shapes(7, seed=3)
LAST = STEPS - 1


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


def traced_run(model: PrismModel, items=ITEMS) -> tuple[Run, Record]:
    """The run of edited items, each forward recorded; what the edits need to be run beforehand is left out."""
    with recording(model.hf) as record:
        run = model.generate(items)
    prefill = max(number for number, fed in enumerate(record.fed) if fed.shape[1] > 1)
    return run, Record(record.fed[prefill:], record.logits[prefill:], record.position_ids[prefill:])


def zeros(value: Tensor) -> Tensor:
    return torch.zeros_like(value)


def doubled(value: Tensor) -> Tensor:
    return value * 2


def equal_runs(traced: tuple[Run, Record], expected: tuple[Unrolled, Record]) -> bool:
    """Whether a traced run is the plain one bit for bit: what was fed, every logit, latents and tokens."""
    (run, record), (unrolled, wanted) = traced, expected
    return (
        same(record.logits, wanted.logits)
        and same(record.fed, wanted.fed)
        and torch.equal(run.latents, unrolled.latents)
        and torch.equal(run.unrolled.input_ids, unrolled.input_ids)
    )


# --- the right step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize(("role", "step"), [(latent[0], 0), (latent[1], 1), (latent[-1], LAST)])
def test_an_edit_at_one_latent_changes_the_vector_fed_at_that_step(pair, count: int, role: Role, step: int):
    items = ITEMS[:count]
    clean, before = plain_run(pair, items)
    run, record = traced_run(pair.traced.edited(Edit(op=Scale(-2.0), positions=role)), items)
    for earlier in range(step):
        assert torch.equal(record.latent(earlier), before.latent(earlier))
    assert torch.equal(record.latent(step), -2 * clean.latents[:, step])
    for later in range(step + 1, STEPS):
        assert torch.equal(record.latent(later), run.latents[:, later]), "later latents are fed as the model made them"
        assert not torch.equal(record.latent(later), before.latent(later)), "and the model made others"
    expected = plain_run(pair, items, {step + 1: [("hook_latent", lambda value: -2 * value)]})
    assert equal_runs((run, record), expected)
    assert not same(record.logits, before.logits)


@pytest.mark.parametrize("count", [1, 7])
def test_edits_at_several_layers_and_steps_bind_to_their_own_step(pair, count: int):
    """Trap: given late layers first and late steps first, against the order of the forward."""
    items = ITEMS[:count]
    edits = [
        Edit(op=Zero(), positions=latent[2], site="blocks.2.hook_resid_post"),
        Edit(op=Scale(2.0), positions=latent[0], site="blocks.2.hook_mlp_out"),
        Edit(op=Zero(), positions=latent[1], site="hook_latent"),
        Edit(op=Zero(), positions=latent[0], site="blocks.0.attn.hook_q"),
        Edit(op=Scale(2.0), positions=answer[0], site="blocks.1.hook_resid_mid"),
        Edit(op=Scale(2.0), positions=lead[-1], site="blocks.1.attn.hook_v"),
    ]

    def last(value: Tensor) -> Tensor:
        return torch.cat((value[:, :-1], value[:, -1:] * 2), 1)

    expected = plain_run(
        pair,
        items,
        {
            0: [("blocks.1.attn.hook_v", last)],
            1: [("blocks.0.attn.hook_q", zeros), ("blocks.2.hook_mlp_out", doubled)],
            2: [("hook_latent", zeros)],
            3: [("blocks.2.hook_resid_post", zeros)],
            4: [("blocks.1.hook_resid_mid", doubled)],
        },
    )
    assert equal_runs(traced_run(pair.traced.edited(*edits), items), expected)
    for left_out in range(len(edits)):
        fewer = edits[:left_out] + edits[left_out + 1 :]
        assert not equal_runs(traced_run(pair.traced.edited(*fewer), items), expected), edits[left_out]


@pytest.mark.parametrize("name", NAMES)
def test_at_every_site_an_edit_is_a_plain_hook_and_no_edit_is_no_change(pair, name: str):
    items = ITEMS[:2]
    clean = plain_run(pair, items)
    expected = plain_run(pair, items, {step + 1: [(name, doubled)] for step in range(STEPS)})
    edited = traced_run(pair.traced.edited(Edit(op=Scale(2.0), positions=latent, site=name)), items)
    assert equal_runs(edited, expected)
    assert not same(edited[1].logits, clean[1].logits)
    nothing = pair.traced.edited(Edit(op=Identity(), positions=latent, site=name))
    assert equal_runs(traced_run(nothing, items), clean)


def test_a_group_is_its_sites_at_every_layer(pair):
    changes = [(f"blocks.{layer}.attn.hook_{part}", doubled) for layer in range(LAYERS) for part in "kv"]
    expected = plain_run(pair, ITEMS, {2: changes})
    assert equal_runs(traced_run(pair.traced.edited(Edit(op=Scale(2.0), positions=latent[1], site="kv"))), expected)


def test_edits_at_image_positions_take_effect_where_token_embeddings_cannot(pair):
    """Trap: what `embed_tokens` gives at image positions is overwritten; the first block's input is not."""
    clean = plain_run(pair, ITEMS)
    pictures = clean[0].segments[:, : clean[0].n_prompt] == Segment.IMAGE

    def blank(value: Tensor) -> Tensor:
        return torch.where(pictures[..., None], 0.0, value)

    embed = pair.plain.get_input_embeddings()
    handle = embed.register_forward_hook(lambda _, args, out: blank(out) if out.shape[:2] == pictures.shape else None)
    assert equal_runs(traced_run(pair.traced), plain_run(pair, ITEMS)), "an edit of the embeddings is lost"
    handle.remove()
    edited = traced_run(pair.traced.edited(Edit(op=Zero(), positions=image, site="blocks.0.hook_resid_pre")))
    assert equal_runs(edited, plain_run(pair, ITEMS, {0: [("blocks.0.hook_resid_pre", blank)]}))
    assert not same(edited[1].logits, clean[1].logits)
    assert bool((edited[1].fed[0][pictures] == 0).all())


@pytest.mark.parametrize("count", [1, 3])
def test_position_ids_and_rope_offsets_are_those_of_a_plain_run(pair, count: int):
    """Traps: with three rows the ids' first axis looks like a batch; an offset on the module leaks into later runs."""
    items = ITEMS[:count]
    _, before = plain_run(pair, items)
    view = pair.traced.edited(Edit(op=Identity(), positions=question | latent, site="blocks.1.hook_resid_pre"))
    _, record = traced_run(view, items)
    assert same(record.position_ids, before.position_ids)
    assert record.position_ids[0].shape[:2] == (3, count) and record.position_ids[1].shape == (3, count, 1)
    view.run_with_cache(ITEMS[3:5], "resid_post")
    assert pair.traced.hf.model.rope_deltas is None
    assert equal_runs(traced_run(pair.traced, items), plain_run(pair, items))


# --- order, noise, modes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["hook_latent", "blocks.0.hook_resid_pre"])
def test_edits_at_one_site_apply_in_the_order_given(pair, site: str):
    zero, noise = (Edit(op=op, positions=latent[0], site=site) for op in (Zero(), Noise(1.0)))
    _, both = traced_run(pair.traced.edited(zero, noise))
    _, chained = traced_run(pair.traced.edited(zero).edited(noise))
    _, swapped = traced_run(pair.traced.edited(noise, zero))
    assert both.latent(0).std() > 0.5 and same(both.fed, chained.fed)
    assert bool((swapped.latent(0) == 0).all())


@pytest.mark.parametrize(("role", "site"), [(latent, "hook_latent"), (question, "blocks.0.hook_resid_pre")])
def test_noise_belongs_to_the_item_and_not_to_its_batch(pair, role: Role, site: str):
    view = pair.traced.edited(
        Edit(op=Zero(), positions=role, site=site), Edit(op=Noise(1.0), positions=role, site=site, seed=5)
    )

    def noise(run: Run, record: Record, item) -> Tensor:
        row = run.items.index(item)
        fed = torch.cat(record.fed, 1)
        return fed[row, role.mask(run.unrolled)[row, : fed.shape[1]]]

    together = traced_run(view)
    backwards = traced_run(view, ITEMS[::-1])
    for item in ITEMS:
        own = noise(*together, item)
        assert 0.7 < own.std() < 1.3 and len(own.unique(dim=0)) == len(own), "other noise at every position"
        assert torch.equal(own, noise(*traced_run(view, [item]), item))
        assert torch.equal(own, noise(*backwards, item))
    steps = [noise(*together, item)[0] for item in ITEMS]
    assert not any(torch.equal(steps[0], one) for one in steps[1:])


def test_a_held_run_feeds_the_clean_latents_and_a_free_run_the_models_own(pair):
    clean, before = plain_run(pair, ITEMS)
    edit = Edit(op=Scale(-3.0), positions=latent[0])
    (free, free_record), (held, held_record) = (
        traced_run(pair.traced.edited(replace(edit, mode=mode))) for mode in ("free", "held")
    )
    for record in (free_record, held_record):
        assert torch.equal(record.latent(0), -3 * clean.latents[:, 0])
    for step in range(1, STEPS):
        assert torch.equal(held_record.latent(step), clean.latents[:, step])
        assert not torch.equal(free_record.latent(step), clean.latents[:, step])
        assert torch.equal(free_record.latent(step), free.latents[:, step])
    assert torch.equal(held.latents, clean.latents)
    assert not torch.equal(held_record.logits[-1], before.logits[-1]), "the edited latent is still seen"
    assert not same(held_record.logits, free_record.logits)


def test_at_the_last_latent_free_and_held_are_the_same(pair):
    edit = Edit(op=Zero(), positions=latent[-1])
    free, held = (traced_run(pair.traced.edited(replace(edit, mode=mode)))[1] for mode in ("free", "held"))
    assert same(free.logits, held.logits) and same(free.fed, held.fed)


def test_a_held_run_without_a_change_is_the_clean_run(pair):
    assert equal_runs(traced_run(pair.traced.edited(Edit(op=Identity(), mode="held"))), plain_run(pair, ITEMS))


def test_edits_of_two_modes_are_refused(pair):
    with pytest.raises(EditError, match="modes free and held together"):
        pair.traced.edited(Edit(op=Zero()), Edit(op=Zero(), mode="held"))


def test_swapped_latents_are_the_donors_own_at_the_same_step(pair):
    run, record = traced_run(pair.traced.edited(Edit(op=Swap(), positions=latent[1:], seed=2)))
    clean, _ = plain_run(pair, ITEMS)
    (donors,) = run.donors
    rows = {item.id: row for row, item in enumerate(ITEMS)}
    for item in ITEMS:
        assert donors[item.id] != item.id
        for step in (1, 2):
            assert torch.equal(record.latent(step)[rows[item.id]], clean.latents[rows[donors[item.id]], step])


# --- structural edits -------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(pair: Twins, run: Unrolled, hidden, layers=range(LAYERS)) -> StepOutput:
    """The finished sequences under masks written out pair by pair; `hidden(query, key)` takes (segment, step) pairs."""
    batch, width = run.shape
    open_, cut = (torch.zeros(batch, 1, width, width, dtype=torch.bool) for _ in range(2))
    for row in range(batch):
        marks = list(zip(run.segments[row].tolist(), run.steps[row].tolist(), strict=True))
        for query in range(width):
            for key in range(query + 1):
                seen = marks[key][0] != Segment.PAD or query == key
                open_[row, 0, query, key] = seen
                cut[row, 0, query, key] = seen and not hidden(marks[query], marks[key])
    masks = LayerMasks([cut if layer in layers else open_ for layer in range(LAYERS)])
    return pair.plain.step(**whole(pair, run) | {"attention_mask": masks})


S = Segment
STRUCTURAL = [
    (Edit(op=DeleteKV()), lambda q, k: q[0] == S.ANSWER and k[0] == S.LATENT, range(LAYERS)),
    (Edit(op=DeleteKV(), positions=latent[1]), lambda q, k: q[0] == S.ANSWER and k[1] == 1, range(LAYERS)),
    (Edit(op=Cut(to=image, by=answer)), lambda q, k: q[0] == S.ANSWER and k[0] == S.IMAGE, range(LAYERS)),
    (Edit(op=Cut(to=image, by=latent, layers=(0, 2))), lambda q, k: q[0] == S.LATENT and k[0] == S.IMAGE, (0, 2)),
]


@pytest.mark.parametrize(("edit", "hidden", "layers"), STRUCTURAL, ids=[str(one[0]) for one in STRUCTURAL])
def test_a_structural_edit_is_the_mask_written_by_hand(pair, edit: Edit, hidden, layers):
    view = pair.traced.edited(edit)
    run, record = traced_run(view, ITEMS[:3])
    expected = by_hand(pair, run.unrolled, hidden, layers)
    width = run.unrolled.n_prompt + len(record.logits) - 1
    loop = torch.stack(record.logits, 1)
    assert relative(loop, expected.logits[:, run.unrolled.n_prompt - 1 : width]) < 1e-5
    uncut = by_hand(pair, run.unrolled, lambda query, key: False)
    assert relative(loop, uncut.logits[:, run.unrolled.n_prompt - 1 : width]) > 1e-3
    logits, _ = view.run_with_cache(ITEMS[:3], "resid_post", positions=answer)
    assert relative(logits.flatten(0, -2), expected.logits[answer.mask(run.unrolled)]) < 1e-5


def test_behind_a_deleted_slot_the_vector_cannot_matter(pair):
    vector, slot = Edit(op=Noise(2.0)), Edit(op=DeleteKV())
    clean, noisy, deleted, both, cut = (
        traced_run(pair.traced.edited(*edits))
        for edits in ((), (vector,), (slot,), (slot, vector), (Edit(op=Cut(to=latent, by=answer)),))
    )
    after = slice(STEPS + 1, None)
    assert same(both[1].logits[after], deleted[1].logits[after])
    assert same(deleted[1].logits, cut[1].logits)
    assert not same(noisy[1].logits[after], clean[1].logits[after])
    assert not same(deleted[1].logits[after], clean[1].logits[after])
    assert torch.equal(deleted[0].latents, clean[0].latents), "latents see each other all the same"


# --- edits that cannot take effect ------------------------------------------------------------------------------------


def names_items(error: EditError, items=ITEMS) -> bool:
    """Whether the first five items are named, and how many there are in all."""
    return f"{len(items)} items: {', '.join(item.id for item in items[:5])}" in str(error)


@pytest.mark.parametrize(
    ("role", "site"),
    [
        (answer.first, "blocks.1.hook_resid_post"),
        (answer.source, "blocks.1.hook_resid_post"),
        (answer[-1], "blocks.1.hook_resid_post"),
        (latent.source[-1], "blocks.1.hook_resid_post"),
        (latent.source[-2], "blocks.0.hook_mlp_out"),
        (question[-1], "hook_latent"),
        (latent | question[-1], "hook_latent"),
        (answer[0], "hook_latent"),
    ],
    ids=str,
)
def test_an_edit_that_cannot_reach_its_positions_raises_and_names_items(pair, role: Role, site: str):
    with pytest.raises(EditError, match=r"missed \d+ positions and changed \d+ others") as caught:
        pair.traced.edited(Edit(op=Zero(), positions=role, site=site)).generate(ITEMS)
    assert names_items(caught.value) and str(role) in str(caught.value) and site in str(caught.value)
    assert equal_runs(traced_run(pair.traced), plain_run(pair, ITEMS))


def test_the_last_latent_is_not_known_where_the_model_itself_ends_the_block():
    pair = twins(latent_exit="end_token", latent_close=[])
    pair.traced.edited(Edit(op=Zero(), positions=latent[1])).generate(ITEMS[:2])
    with pytest.raises(EditError, match="changed 4 others in 2 items"):
        pair.traced.edited(Edit(op=Zero(), positions=latent[-1])).generate(ITEMS[:2])


def test_an_edit_of_a_last_token_is_refused_because_nothing_comes_after(pair):
    clean, _ = plain_run(pair, ITEMS[:1])
    written = int(answer.mask(clean).sum())
    view = pair.traced.edited(Edit(op=Zero(), positions=answer[written - 1], site="blocks.1.hook_resid_post"))
    with pytest.raises(EditError, match="can change nothing in 1 items") as caught:
        view.generate(ITEMS[:1])
    assert ITEMS[0].id in str(caught.value)
    before = pair.traced.edited(Edit(op=Zero(), positions=answer[written - 2], site="blocks.1.hook_resid_post"))
    assert not same(traced_run(before, ITEMS[:1])[1].logits, traced_run(pair.traced, ITEMS[:1])[1].logits)


@pytest.mark.parametrize("role", [latent[STEPS], answer[50], image.box & question], ids=str)
def test_an_edit_at_positions_that_do_not_exist_is_an_error(pair, role: Role):
    with pytest.raises(RoleError, match="is absent in 7 of 7 items"):
        pair.traced.edited(Edit(op=Zero(), positions=role, site="blocks.1.hook_resid_post")).generate(ITEMS)


@pytest.mark.parametrize(
    ("site", "text"),
    [
        ("blocks.1.hook_resid_pots", "'blocks.1.hook_resid_post'"),
        ("hook_latnt", "'hook_latent'"),
        (f"blocks.{LAYERS}.hook_resid_post", f"a layer from 0 to {LAYERS - 1}"),
    ],
)
def test_a_site_that_does_not_exist_is_refused_before_anything_runs(pair, site: str, text: str):
    with pytest.raises(SiteError, match=text):
        pair.traced.edited(Edit(op=Zero(), site=site))


class Wrong(Operation):
    """An operation that breaks its promise."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def replace(self, value, context):
        return self.spoil(value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spoil", [lambda value: value[:, :3], lambda value: value.double(), lambda value: None])
def test_an_operation_that_returns_another_shape_or_dtype_is_refused(pair, spoil):
    with pytest.raises(EditError, match="a change at hook_latent returned"):
        pair.traced.edited(Edit(op=Wrong(spoil))).generate(ITEMS[:2])
    assert equal_runs(traced_run(pair.traced, ITEMS[:2]), plain_run(pair, ITEMS[:2]))


# --- the model is given back ------------------------------------------------------------------------------------------


def hooks_of(model) -> list[int]:
    """How many hooks each module has."""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_a_view_shares_the_weights_and_leaves_the_original_as_it_was(pair):
    model = pair.traced
    weights = {name: value.clone() for name, value in model.hf.state_dict().items()}
    hooks = hooks_of(model.hf)
    view = model.edited(Edit(op=Zero()))
    assert view.hf is model.hf and view.processor is model.processor
    view.generate(ITEMS[:2])
    view.run_with_cache(ITEMS[:2])
    assert model.edits == () and model.active_edits == () and view.clean().active_edits == ()
    assert hooks_of(model.hf) == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.hf.state_dict().items())
    assert equal_runs(traced_run(model), plain_run(pair, ITEMS))


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_context_gives_the_model_back_whatever_happens_inside(pair, error: type[BaseException] | None):
    model = pair.traced
    edit = Edit(op=Zero(), positions=latent[1])

    def block() -> None:
        with corrupt(model, positions=latent[1]) as same_model:
            assert same_model is model and model.active_edits == (edit,)
            assert equal_runs(traced_run(model), plain_run(pair, ITEMS, {2: [("hook_latent", zeros)]}))
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    assert model.active_edits == ()
    assert equal_runs(traced_run(model), plain_run(pair, ITEMS))


class Interrupted(Operation):
    """Ctrl-C in the middle of a traced forward."""

    def replace(self, value, context):
        raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_a_forward_leaves_nothing_behind(pair):
    with pytest.raises(KeyboardInterrupt), corrupt(pair.traced, op=Interrupted(), site="blocks.1.hook_resid_mid"):
        pair.traced.generate(ITEMS)
    assert pair.traced.active_edits == ()
    assert equal_runs(traced_run(pair.traced), plain_run(pair, ITEMS))


@pytest.mark.parametrize("made", ["before", "inside"])
def test_nested_contexts_add_up_once_and_close_one_by_one(pair, made: str):
    model = pair.traced
    clean, _ = plain_run(pair, ITEMS)

    def factor() -> Tensor:
        return traced_run(model)[1].latent(0) / clean.latents[:, 0]

    outer = corrupt(model, positions=latent[0], op=Scale(2.0))
    inner = corrupt(model, positions=latent[0], op=Scale(4.0))
    with outer:
        assert torch.equal(factor(), torch.full_like(factor(), 2.0))
        if made == "inside":
            inner = corrupt(model, positions=latent[0], op=Scale(4.0))
        with inner:
            assert torch.equal(factor(), torch.full_like(factor(), 8.0))
        assert torch.equal(factor(), torch.full_like(factor(), 2.0))
    assert torch.equal(factor(), torch.full_like(factor(), 1.0))


def test_a_view_made_in_a_context_has_the_edits_of_both(pair):
    with corrupt(pair.traced, positions=latent[0], op=Scale(2.0)):
        view = corrupt(pair.traced, positions=latent[0], op=Scale(4.0))
        clean, _ = plain_run(pair, ITEMS)
        assert torch.equal(traced_run(view)[1].latent(0), 8 * clean.latents[:, 0])


def test_a_model_without_edits_is_no_context(pair):
    with pytest.raises(EditError, match="without edits was opened"), pair.traced:
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate(ITEMS, max_tokens=3),
        lambda model: model.run_with_cache(ITEMS, name_filter="resid_post"),
        lambda model: model.run_with_cache(ITEMS, postions=latent),
        lambda model: corrupt(model, position=latent),
        lambda model: model.edited(Edit(op=Zero()), seed=1),
        lambda model: Edit(op=Zero(), layer=3),
        lambda model: trace.load((model.hf, model.processor), batch=3),
    ],
)
def test_an_unknown_keyword_is_a_type_error(pair, call):
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(pair.traced)
