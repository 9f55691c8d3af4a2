"""The vision tower's own lesson: say at every image token what lies there and where; then freeze and rescale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import Scene, sample_scene
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.training.scenes import TOKENS_PER_CELL, sample_scenes

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""


def token_labels(scene: Scene) -> Int[np.ndarray, "token 4"]:
    """For every image token: shape, colour (0 where the cell is empty), row, column."""
    rows, columns = scene.rows * TOKENS_PER_CELL, scene.columns * TOKENS_PER_CELL
    labels = np.zeros((rows, columns, 4), dtype=np.int64)
    for thing in scene.things:
        at = np.s_[thing.row * 2 : thing.row * 2 + 2, thing.column * 2 : thing.column * 2 + 2]
        labels[at] = (SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1, 0, 0)
    labels[..., 2], labels[..., 3] = np.arange(rows)[:, None], np.arange(columns)[None, :]
    return labels.reshape(-1, 4)


def train_tower(
    model: LVRForConditionalGeneration,
    processor: LVRProcessor,
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    lr: float = 2e-3,
) -> float:
    """Train `model.model.visual` on four linear heads over its merger's outputs; the heads are thrown away.

    Returns:
        Mean accuracy of shape and colour at the tokens of objects over the last tenth of the steps.
    """
    visual = model.model.visual
    width = model.config.text.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.Linear(width, len(SHAPES) + 1 + len(COLORS) + 1 + 10 + 10)
    sizes = (len(SHAPES) + 1, len(COLORS) + 1, 10, 10)
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * WARM_UP), steps)
    rng = np.random.default_rng(seed)
    scores: list[float] = []
    bar = tqdm(range(steps), desc="vision tower")
    for step in bar:
        scenes = [sample_scene(rng, "train") for _ in range(batch)]
        labels = torch.from_numpy(np.concatenate([token_labels(scene) for scene in scenes]))
        parts = heads(_features(model, processor, scenes)).split(sizes, -1)
        loss = torch.stack([F.cross_entropy(part, labels[:, i]) for i, part in enumerate(parts)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= int(steps * 0.9) or step % 50 == 0:
            there = labels[:, 0] > 0
            right = [(parts[i].argmax(-1) == labels[:, i])[there].float().mean().item() for i in (0, 1)]
            bar.set_postfix(loss=f"{loss.item():.3f}", shape=f"{right[0]:.3f}", color=f"{right[1]:.3f}")
            scores += [sum(right) / 2] if step >= int(steps * 0.9) else []
    rescale_merger(model, processor, sample_scenes(256, seed + 1))
    return float(np.mean(scores))


@torch.no_grad()
def rescale_merger(model: LVRForConditionalGeneration, processor: LVRProcessor, scenes: Sequence[Scene]) -> None:
    """Fold centring and division by the standard deviation, per dimension, into the merger's last linear layer.

    Afterwards merger outputs have mean 0 and variance 1 on `scenes`, the scale of the final norm's states.
    """
    features = torch.cat([_features(model, processor, scenes[i : i + 64]) for i in range(0, len(scenes), 64)])
    mean, std = features.mean(0), features.std(0)
    last = model.model.visual.merger.mlp[2]
    assert isinstance(last, nn.Linear)
    last.weight.div_(std[:, None])
    last.bias.sub_(mean).div_(std)


def _features(model: LVRForConditionalGeneration, processor: LVRProcessor, scenes: Sequence[Scene]) -> Tensor:
    pixels = processor.image_processor(images=[scene.render() for scene in scenes], return_tensors="pt")
    features = model.image_features(pixels["pixel_values"], pixels["image_grid_thw"])
    assert features is not None
    return features
