"""Random tiny models under any variant, packs of questions for them, and the same questions through the latent loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prismlens.data.shapes import Scene, sample_scene, shapes
from prismlens.models.loop import LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.stages import stage_names
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.training.batch import Batch, Group, Pack
from prismlens.training.examples import Slotting, answer_text, encode_prompt, make_example
from prismlens.training.features import tower_features
from prismlens.training.layout import collate
from prismlens.training.prepare import Prepared, prepare
from prismlens.training.protocol import FAIR, Protocol
from prismlens.training.variants import VARIANTS, Variant
from prismlens.types import Item
from prismlens.unrolled import Unrolled

STEPS = 4
STAGED = ("p-lvr-2", "p-lvr-3")
RULED = Variant(
    "ruled",
    "",
    stages=VARIANTS["p-lvr-3"].stages,
    visibility=(
        {"query": "latent.stage('target')", "key": "latent.stage('context')", "layers": [1, 2]},
        {"query": "answer", "key": "latent.stage('free') | image"},
        {"query": "between", "key": "question"},
    ),
)
"""Several stages with rules about each."""
HEADED = Variant("headed", "", head="gated", end_vector=True)
"""What is fed back is not the state itself, and the end marker's embedding is a learned vector."""
OWN = {variant.name: variant for variant in (RULED, HEADED)}


def variant_of(name: str) -> Variant:
    return OWN[name] if name in OWN else VARIANTS[name]


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def base_of(seed: int = 0, layers: int = 4) -> tuple[LVRForConditionalGeneration, Any]:
    processor = tiny_processor(start=False)
    config = tiny_config(processor.tokenizer, width=64, layers=layers, latent_entry="none")
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, seed)
    return model, processor


def ready_for(variant: Variant, *, protocol: Protocol = FAIR, steps: int = STEPS, **kwargs: Any) -> Prepared:
    """A random model prepared for the variant, ready to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = prepare(*base_of(), variant, latent_steps=steps, protocol=protocol, **kwargs)
        for name, value in out.model.named_parameters():
            if name.startswith("lvr_"):
                torch.nn.init.normal_(value, 0, 0.3)
    out.model.eval()
    return out


def scene_on(columns: int, rows: int, seed: int = 0) -> Scene:
    """The first scene of a seed that has this canvas."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample_scene(rng, "train")
        if (scene.columns, scene.rows) == (columns, rows):
            return scene


@cache
def some_items() -> tuple[tuple[Item, ...], ...]:
    """Groups of items that share an image: two about one scene, one with three boxes, two about a wide image."""
    found = shapes(12, seed=3)
    square, other = [(found[i], found[i + 1]) for i in (0, 4)]
    noise = np.random.default_rng(0).integers(0, 255, (84, 126, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    boxes = ((0.0, 0.0, 0.4, 0.5), (0.6, 0.2, 0.95, 0.9), (0.5, 0.5, 0.52, 0.52))
    asked = {"question": "What is the color of the circle?", "options": ("red", "blue"), "image": picture}
    wide = Item(boxes=boxes, answer="B", id="wide", **asked), Item(boxes=boxes[1:2], answer="A", id="wide-2", **asked)
    return square, other[:1], wide


@torch.no_grad()
def group_of(ready: Prepared, items: Sequence[Item], slotting: Slotting | None = None, **kwargs: Any) -> Group:
    """Items about one image as a group."""
    ((features, grid),) = tower_features(ready.model, ready.plain, items[:1])
    encoded = [encode_prompt(ready.plain, item, grid[0] * grid[1]) for item in items]
    examples = [
        make_example(
            ready.model.config, ready.plain, item, prompt, grid, slotting or ready.slotting, answer=answer_text(item),
            **kwargs,
        )
        for item, (_, prompt) in zip(items, encoded, strict=True)
    ]  # fmt: skip
    prefix = encoded[0][0]
    return Group((prefix.ids, prefix.segments), tuple(examples), grid, features)


def lay(ready: Prepared, packs: Sequence[Pack], *, waves: bool, **kwargs: Any) -> Batch:
    config = ready.model.config
    names = stage_names(cast(Any, config))
    return collate(
        packs, width=config.text.hidden_size, waves=waves, stage_names=names, free_id=config.free_id, **kwargs
    )


@dataclass(frozen=True, eq=False)
class Case:
    """A batch of two packs, [two examples + two examples, one example], and the items behind its examples."""

    ready: Prepared
    groups: tuple[Group, ...]
    batch: Batch

    @property
    def model(self) -> LVRForConditionalGeneration:
        return self.ready.model

    @property
    def features(self) -> Tensor:
        assert self.batch.image_features is not None
        return self.batch.image_features

    @property
    def targets(self) -> Tensor:
        return self.features[self.batch.slot_feature.clamp(min=0)] * self.batch.slots[..., None]

    @property
    def places(self) -> list[tuple[int, int, Item]]:
        """Row, number in the row, and item of every example."""
        square, other, wide = some_items()
        return [*((0, i, item) for i, item in enumerate((*square, *wide))), (1, 0, other[0])]

    def columns(self, row: int, number: int) -> Tensor:
        """The columns of one example: its group's prefix and its own."""
        own = self.batch.blocks[row] == number
        group = int(self.batch.groups[row][own][0])
        shared = (self.batch.blocks[row] == -1 - group) & self.batch.unrolled.valid[row]
        return torch.nonzero(own | shared)[:, 0]

    def slots(self, row: int, number: int) -> Tensor:
        """The numbers of one example's slots among those of its row."""
        steps = self.batch.unrolled.steps[row]
        return steps[(self.batch.blocks[row] == number) & (steps >= 0)]


@cache
def case_of(name: str, *, waves: bool, box: bool = False) -> Case:
    """The case of a variant; nothing changes its model."""
    ready = ready_for(variant_of(name), protocol=replace(FAIR, slots="box") if box else FAIR)
    square, other, wide = some_items()
    groups = tuple(group_of(ready, items) for items in (square, wide, other))
    packs = [Pack(groups[:2], seed=5), Pack(groups[2:], seed=6)]
    return Case(ready, groups, lay(ready, packs, waves=waves))


@cache
def alone(name: str, row: int, number: int, *, free: bool) -> Unrolled:
    """The example's item run by the latent loop, its text dictated: what inference does when it writes the answer.

    Its latents are the training targets, or its own when the run is free.
    """
    case = case_of(name, waves=False)
    model = case.model
    item = next(item for r, n, item in case.places if (r, n) == (row, number))
    slots = case.slots(row, number)
    held = case.targets[row, slots][None] if len(slots) and not free else None
    words = case.ready.plain.tokenizer(answer_text(item) + "<|im_end|>", add_special_tokens=False)["input_ids"]
    settings = LoopSettings.of(model.config, [words[-1]], max_new_tokens=len(words))
    silent = sum(stage.steps + len(stage.close) for stage in settings.stages_of(model.config))
    count = [0]

    def forward(unrolled: Unrolled, n_queries: int, **inputs: Any) -> StepOutput:
        out = plain_forward(model)(unrolled, n_queries, **inputs)
        logits = torch.zeros_like(out.logits)
        logits[..., words[max(count[0] - silent, 0)]] = 1.0
        count[0] += 1
        return replace(out, logits=logits)

    return unroll(model, case.ready.processor([item]), settings, forward=forward, held=held)


@torch.no_grad()
def replayed(model: LVRForConditionalGeneration, processor: Any, run: Unrolled) -> StepOutput:
    """States and logits of a finished sequence, from pixels."""
    prompt = processor(run.items)
    features = model.image_features(prompt.pixel_values, prompt.image_grid_thw)
    return model.step(**cast(Any, replay_inputs(model, run)), image_features=features)
