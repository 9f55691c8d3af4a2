"""Hook names of the vision tower: the processor's order of patches, reads and changes against plain hooks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import SiteError
from prismlens.positions import latent
from tests.plain_hooks import Twins, plain_run, relative, shaped_twins

ITEMS = shapes(3, seed=3)
NAMES = [
    "hook_vision_embed", "vision.blocks.0.hook_resid_pre", "vision.blocks.0.hook_resid_post",
    "vision.blocks.1.hook_resid_pre", "vision.blocks.1.hook_resid_post", "hook_vision_out", "hook_vision_proj_in",
    "hook_vision_proj_out",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Twins:
    return shaped_twins(1, steps=2)


def place(pair: Twins, name: str):
    """The tower's module behind a name, and which end of it."""
    tower = pair.plain.model.visual
    return {
        "hook_vision_embed": (tower.patch_embed, "output"),
        "vision.blocks.0.hook_resid_pre": (tower.blocks[0], "input"),
        "vision.blocks.0.hook_resid_post": (tower.blocks[0], "output"),
        "vision.blocks.1.hook_resid_pre": (tower.blocks[1], "input"),
        "vision.blocks.1.hook_resid_post": (tower.blocks[1], "output"),
        "hook_vision_out": (tower.blocks[1], "output"),
        "hook_vision_proj_in": (tower.merger, "input"),
        "hook_vision_proj_out": (tower.merger, "output"),
    }[name]


def with_hook(module, end: str, change):
    if end == "output":
        return module.register_forward_hook(lambda _, args, out: change(out))
    return module.register_forward_pre_hook(
        lambda _, args: None if (new := change(args[0])) is None else (new, *args[1:])
    )


@torch.no_grad()
def alone(pair: Twins, item, name: str) -> Tensor:
    """The values for one image, whose windows make the tower's order; put back with an order found by probing it."""
    prompt, kept = pair.processor([item]), []
    module, end = place(pair, name)
    order: list[Tensor] = []
    handles = [
        with_hook(module, end, lambda value: kept.append(value.clone())),
        # What enters the first block are the embedded patches in the tower's order; each is recognised by its value.
        pair.plain.model.visual.patch_embed.register_forward_hook(lambda _, args, out: order.append(out.clone())),
        pair.plain.model.visual.blocks[0].register_forward_pre_hook(lambda _, args: order.append(args[0].clone())),
    ]
    pair.plain.image_features(prompt.pixel_values, prompt.image_grid_thw)
    for handle in handles:
        handle.remove()
    if name == "hook_vision_embed":
        return kept[0]
    units = [one.reshape(len(one) // 4, -1) for one in order]
    place_of = [(units[1] == unit).all(1).nonzero()[0, 0] for unit in units[0]]
    return kept[0].reshape(len(place_of), -1)[torch.stack(place_of)].reshape(kept[0].shape)


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_values_are_the_towers_in_the_processors_order_for_any_batches(pair, batch_size: int):
    model = replace(pair.traced, batch_size=batch_size)
    _, cache = model.run_with_cache(ITEMS, NAMES)
    for name in NAMES:
        expected = [alone(pair, item, name) for item in ITEMS]
        assert relative(cache[name], torch.cat(expected)) < 1e-5, name
        rows = [row for row, part in enumerate(expected) for _ in part]
        assert cache.where(name).rows.tolist() == rows
        assert cache.where(name).columns.tolist() == [i for part in expected for i in range(len(part))]
    moved = alone(pair, ITEMS[0], "vision.blocks.0.hook_resid_pre")
    assert torch.equal(moved, alone(pair, ITEMS[0], "hook_vision_embed")), "the windows have to be undone"


def test_the_projections_output_are_the_image_tokens_that_the_first_block_reads(pair):
    _, cache = pair.traced.run_with_cache(ITEMS, ["hook_vision_proj_out", "hook_embed"])
    assert torch.equal(cache["hook_vision_proj_out"], cache.flat("hook_embed")[at_images(cache)])


def at_images(cache) -> Tensor:
    return cache.unrolled.patches[cache.positions.rows, cache.positions.columns, 0] >= 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_change_is_that_of_a_plain_hook_and_reaches_the_latents(pair, name: str):
    module, end = place(pair, name)
    handle = with_hook(module, end, lambda value: value * 1.5 + 0.25)
    expected, _ = plain_run(pair, ITEMS)
    handle.remove()
    change = lambda value, hook: value * 1.5 + 0.25  # noqa: E731
    run = pair.traced.run_with_hooks(ITEMS, [(name, change)], return_type="run")
    assert torch.equal(run.latents, expected.latents)
    clean = pair.traced.generate(ITEMS)
    assert not torch.equal(run.latents, clean.latents)
    held = pair.traced.run_with_hooks(ITEMS, [(name, change)], mode="held", run=clean)
    bare = pair.traced.run_with_hooks(ITEMS, [(name, lambda value, hook: None)], mode="held", run=clean)
    assert not torch.equal(held, bare)


@torch.no_grad()
def test_a_change_of_one_patch_is_of_that_patch(pair):
    """Rows are told apart by their place in the image, whatever the tower's windows."""

    def blank(value: Tensor, *, hook) -> Tensor:
        value[7] = 0
        return value

    seen = []
    hooks = [
        ("vision.blocks.1.hook_resid_pre", blank),
        ("vision.blocks.1.hook_resid_pre", lambda v, hook: seen.append(v)),
    ]
    pair.traced.run_with_hooks(ITEMS[:1], hooks)
    expected = alone(pair, ITEMS[0], "vision.blocks.1.hook_resid_pre")
    expected[7] = 0
    assert torch.equal(seen[0], expected)


def test_gradients_in_the_tower_are_those_of_the_image_tokens(pair):
    names = ["hook_vision_proj_out", "hook_embed", "hook_vision_embed"]
    run = pair.traced.generate(ITEMS)
    sizes = run.unrolled.valid.sum(1).tolist()
    _, cache = pair.traced.run_with_cache(
        ITEMS, names, run=run, incl_bwd=True, metric=lambda logits: torch.stack([p[-1, 3] for p in logits.split(sizes)])
    )
    assert relative(cache.flat("hook_embed_grad")[at_images(cache)], cache["hook_vision_proj_out_grad"]) < 1e-5
    assert float(cache["hook_vision_embed_grad"].abs().max()) > 0


def test_positions_and_unknown_blocks_are_refused(pair):
    with pytest.raises(SiteError, match=r"asks for 'vision\.blocks\.2"):
        pair.traced.run_with_cache(ITEMS, "vision.blocks.2.hook_resid_pre")
    for chosen in ({"positions": latent}, {"pos_slice": -1}):
        with pytest.raises(SiteError, match="positions at 'hook_vision_out'"):
            pair.traced.run_with_cache(ITEMS, ["hook_vision_out", "resid_post"], **chosen)
    assert not [name for name in pair.traced.run_with_cache(ITEMS[:1], positions=latent)[1] if "vision" in name]
