"""The vision tower's lesson: labels worked out by hand, an exact change of scale, and a language model left alone."""

import numpy as np
import pytest
import torch

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import Scene, Thing
from prismlens.training.features import tower_features
from prismlens.training.tower import rescale_merger, token_labels, train_tower
from prismlens.types import Item
from tests.training_cases import base_of, relative, scene_on

SCENES = [scene_on(*canvas, seed) for canvas in ((3, 3), (4, 3), (3, 4)) for seed in range(4)]


@torch.no_grad()
def scene_features(model, processor, scenes: list[Scene]) -> list[torch.Tensor]:
    """Merger outputs of rendered scenes."""
    items = [Item(scene.render(), "-") for scene in scenes]
    return [value for value, _ in tower_features(model, processor, items)]


def thing(shape: str, color: str, column: int, row: int) -> Thing:
    return Thing(shape, color, column, row, 12, (0, 0), (0, 0, 0))


def test_labels_of_a_tiny_scene():
    scene = Scene((thing("square", "red", 0, 0), thing("circle", "orange", 1, 0)), columns=3, rows=1, style=0)
    square, circle = SHAPES.index("square") + 1, SHAPES.index("circle") + 1
    assert (list(COLORS)[:2], circle) == (["red", "orange"], 1)
    top = [[square, 1, 0, 0], [square, 1, 0, 1], [circle, 2, 0, 2], [circle, 2, 0, 3], [0, 0, 0, 4], [0, 0, 0, 5]]
    bottom = [[shape, color, 1, column] for shape, color, _, column in top]
    assert token_labels(scene).tolist() == top + bottom


def test_labels_follow_the_pixels_of_every_canvas():
    for scene in SCENES:
        labels = token_labels(scene).reshape(scene.rows * 2, scene.columns * 2, 4)
        for one in scene.things:
            x1, y1, x2, y2 = one.corners
            row, column = (y1 + y2) // 2 // 14, (x1 + x2) // 2 // 14
            shape, color = SHAPES.index(one.shape) + 1, list(COLORS).index(one.color) + 1
            assert labels[row, column].tolist() == [shape, color, row, column]
        assert (labels[..., 0] > 0).sum() == 4 * len(scene.things)
        assert ((labels[..., 0] > 0) == (labels[..., 1] > 0)).all()


def test_labels_have_the_order_of_the_merger_outputs():
    """Changing the pixels of one cell changes, most of all, the outputs whose labels hold its thing."""
    model, processor = base_of(layers=1)
    for scene in SCENES[:6]:
        first = scene.things[0]
        without = Scene(scene.things[1:], scene.columns, scene.rows, scene.style)
        before, after = scene_features(model, processor, [scene, without])
        moved = (before - after).norm(dim=-1).argmax()
        assert token_labels(scene)[moved, 0] == SHAPES.index(first.shape) + 1


def test_features_come_one_scene_at_a_time_in_order_whatever_the_batch():
    model, processor = base_of(layers=1)
    for scene, together in zip(SCENES, scene_features(model, processor, SCENES), strict=True):
        assert len(together) == scene.rows * scene.columns * 4
        assert relative(together, scene_features(model, processor, [scene])[0]) < 1e-5


def test_rescaling_gives_mean_zero_and_variance_one_by_an_affine_change_of_the_outputs():
    model, processor = base_of(layers=1)
    visual = model.model.visual
    before = {name: value.clone() for name, value in model.state_dict().items()}
    raw = torch.cat(scene_features(model, processor, SCENES))
    assert raw.std(0).max() > 1.5 * raw.std(0).min() and raw.mean(0).abs().max() > 0.1, "there is something to mend"
    rescale_merger(model, processor, SCENES)
    scaled = torch.cat(scene_features(model, processor, SCENES))
    assert scaled.mean(0).abs().max() < 1e-4
    assert (scaled.var(0) - 1).abs().max() < 1e-4
    assert relative(scaled, (raw - raw.mean(0)) / raw.std(0)) < 1e-5
    # The change is affine everywhere, not only on the scenes that it was fitted on.
    unseen = [scene_on(3, 3, 50)]
    (new,) = scene_features(model, processor, unseen)
    visual.load_state_dict({k.removeprefix("model.visual."): v for k, v in before.items() if "visual" in k})
    (old,) = scene_features(model, processor, unseen)
    assert relative(new, (old - raw.mean(0)) / raw.std(0)) < 1e-5


def test_rescaling_touches_the_last_linear_layer_only():
    model, processor = base_of(layers=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rescale_merger(model, processor, SCENES)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.visual.merger.mlp.2.weight", "model.visual.merger.mlp.2.bias"}


def test_the_towers_lesson_is_its_seed_and_leaves_the_language_model_alone():
    states = []
    for _ in range(2):
        model, processor = base_of(layers=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        score = train_tower(model, processor, steps=11, seed=0, batch=4)
        assert 0 <= score <= 1
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        if not name.startswith("model.visual."):
            assert torch.equal(value, before[name])
    assert not torch.equal(states[0]["model.visual.merger.mlp.0.weight"], before["model.visual.merger.mlp.0.weight"])


@pytest.mark.parametrize("axis", [2, 3])
def test_rows_and_columns_count_tokens_from_the_upper_left(axis: int):
    scene = scene_on(4, 3)
    grid = token_labels(scene)[:, axis].reshape(6, 8)
    expected = np.indices((6, 8))[axis - 2]
    assert (grid == expected).all()
