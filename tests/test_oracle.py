"""Oracle: what is fed is the target, bit for bit, at every step; and the target is the right image token's feature."""

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from prismlens.data.shapes import shapes
from prismlens.errors import EditError, ItemError, RoleError
from prismlens.interventions import Edit, Oracle, Zero
from prismlens.positions import image, latent, question
from prismlens.trace import Run
from prismlens.types import Item
from tests.plain_hooks import STEPS, Record, Twins, plain_run, reading, recording, relative, twins

ITEMS = shapes(7, seed=3)


@pytest.fixture(scope="module")
def pair() -> Twins:
    """Twins that never begin a second block, which there are no targets for."""
    pair = twins()
    for model in (pair.traced.hf, pair.plain):
        never = torch.zeros(model.lm_head.out_features)
        never[model.config.lvr_start_id] = -1e4
        model.lm_head.bias = nn.Parameter(never)
    return pair


def oracle_run(pair: Twins, items, mode: str, positions=latent) -> tuple[Run, Record, list[torch.Tensor]]:
    """A run under the oracle; every forward, and what came out of hook_latent, by plain hooks on the edited run alone."""
    view = pair.traced.edited(Edit(Oracle(), positions=positions, mode=mode))
    clean = pair.traced.generate(items)
    with recording(pair.traced.hf) as record, reading(pair.traced.hf, ["hook_latent"]) as read:
        run = view.generate(items, reference=clean)
    return run, record, read["hook_latent"]


@pytest.mark.parametrize("mode", ["free", "held"])
@pytest.mark.parametrize("count", [1, 7])
def test_what_is_fed_is_the_target_at_every_step(pair, count: int, mode: str):
    items = ITEMS[:count]
    targets = pair.traced.targets(items)
    run, record, seen = oracle_run(pair, items, mode)
    assert count == 1 or len({int(row.sum()) for row in run.unrolled.valid}) > 1, "the batch has to need padding"
    for step in range(STEPS):
        assert torch.equal(record.latent(step), targets[:, step])
        assert torch.equal(seen[step][:, 0], targets[:, step])
    clean, before = plain_run(pair, items)
    assert not torch.equal(before.latent(0), targets[:, 0])
    assert torch.equal(run.latents, clean.latents) == (mode == "held")
    expected = {step + 1: [("hook_latent", lambda _, step=step: targets[:, None, step])] for step in range(STEPS)}
    unrolled, wanted = plain_run(pair, items, expected)
    assert torch.equal(unrolled.input_ids, run.unrolled.input_ids)
    assert all(torch.equal(a, b) for a, b in zip(record.logits, wanted.logits, strict=True))


def test_a_single_step_gets_its_own_target_and_the_others_none(pair):
    targets = pair.traced.targets(ITEMS)
    run, record, _ = oracle_run(pair, ITEMS, "held", latent[1])
    assert torch.equal(record.latent(1), targets[:, 1])
    for step in (0, 2):
        assert torch.equal(record.latent(step), run.latents[:, step])


def test_a_replay_feeds_the_same_targets_as_the_run(pair):
    view = pair.traced.edited(Edit(Oracle()))
    run = view.generate(ITEMS)
    with recording(pair.traced.hf) as record:
        view.run_with_cache(ITEMS, "resid_post", positions=latent, run=run)
    fed = record.fed[-1][latent.mask(run.unrolled)].reshape(len(ITEMS), STEPS, -1)
    assert torch.equal(fed, pair.traced.targets(ITEMS))


def test_targets_belong_to_the_item_and_not_to_its_batch(pair):
    together = pair.traced.targets(ITEMS)
    alone = torch.cat([pair.traced.targets([item]) for item in ITEMS])
    assert relative(together, alone) < 1e-5
    assert relative(pair.traced.targets(ITEMS[::-1]).flip(0), together) < 1e-5


# --- which image tokens -----------------------------------------------------------------------------------------------


def scene(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (84, 84)) -> Item:
    """A picture of 6 x 6 image tokens (14 pixels each) unless another size is given, with a patch of colour a box."""
    picture = Image.new("RGB", size, "gray")
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        corners = (x1 * size[0], y1 * size[1], x2 * size[0] - 1, y2 * size[1] - 1)
        ImageDraw.Draw(picture).rectangle(corners, fill=("red", "blue", "green")[number])
    return Item(picture, "What is it?", ("red", "blue"), "A", boxes=boxes, group="g", id=str(boxes))


THIRD = 1 / 3
SCENES = [
    # Rows 0-1, columns 2-3: tokens (0, 2), (0, 3), (1, 2), (1, 3); of four the first, second and third.
    (scene((THIRD, 0, 2 * THIRD, THIRD)), [(0, 2), (0, 3), (1, 2)]),
    # One latent for the first box; of the second, rows 4-5 and columns 0-1, the first and the third token.
    (scene((THIRD, 0, 2 * THIRD, THIRD), (0, 2 * THIRD, THIRD, 1)), [(0, 2), (4, 0), (5, 0)]),
    # One latent a box, the first token of each.
    (
        scene((0, 0, THIRD, THIRD), (2 * THIRD, 0, 1, THIRD), (THIRD, THIRD, 2 * THIRD, 2 * THIRD)),
        [(0, 0), (0, 4), (2, 2)],
    ),
    # A single token, three times.
    (scene((5 / 6, 5 / 6, 1, 1)), [(5, 5)] * 3),
    # 6 rows of 8 columns: all of the last column but one, of whose six tokens every second.
    (scene((6 / 8, 0, 7 / 8, 1), size=(112, 84)), [(0, 6), (2, 6), (4, 6)]),
]


def test_latents_stand_for_the_image_tokens_worked_out_by_hand(pair):
    items = [item for item, _ in SCENES]
    run, record, _ = oracle_run(pair, items, "held")
    assert run.unrolled.grids.tolist() == [[6, 6]] * 4 + [[6, 8]]
    for row, (_, tokens) in enumerate(SCENES):
        for step, token in enumerate(tokens):
            here = (run.unrolled.patches[row] == torch.tensor(token)).all(-1).nonzero().flatten()
            assert len(here) == 1
            features = record.fed[0][row]
            assert torch.equal(record.latent(step)[row], features[here[0]])
            same = (features == features[here[0]]).all(-1).nonzero().flatten()
            assert same.tolist() == here.tolist(), "the feature tells its token apart from all others"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "kv"])
def test_it_is_refused_at_sites_that_no_feature_was_made_for(site: str):
    with pytest.raises(EditError, match="needed: the site 'hook_latent'"):
        Edit(Oracle(), site=site)


@pytest.mark.parametrize("role", [question[-1], image, latent | question[-1]], ids=str)
def test_it_is_refused_at_positions_that_are_not_latents(pair, role):
    with pytest.raises(EditError, match=r"missed \d+ positions"):
        pair.traced.edited(Edit(Oracle(), positions=role)).generate(ITEMS[:2])


def test_positions_beyond_the_last_latent_are_an_error(pair):
    with pytest.raises(RoleError, match="is absent in 2 of 2 items"):
        pair.traced.edited(Edit(Oracle(), positions=latent[STEPS])).generate(ITEMS[:2])


def test_items_without_boxes_are_named_before_anything_is_written(pair):
    boxless = Item(ITEMS[0].image, "What is it?", ("a", "b"), "A", id="boxless")
    with pytest.raises(ItemError, match="1 of 3 items have no box: 'boxless'"):
        pair.traced.edited(Edit(Oracle())).generate([*ITEMS[:2], boxless])
    pair.traced.edited(Edit(Zero())).generate([boxless])


@pytest.mark.parametrize("edit", [Edit(Oracle()), Edit(Oracle(), positions=latent[1], mode="held", seed=3)], ids=str)
def test_it_goes_through_json(edit: Edit):
    again = Edit.from_json(edit.to_json())
    assert again == edit and isinstance(again.op, Oracle)
