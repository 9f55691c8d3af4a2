"""Rendered scenes as training data: several questions that share one image, drawn anew for every step from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import (
    RELATIONS,
    Question,
    Scene,
    attribute_questions,
    relation_questions,
    sample_scene,
)
from prismlens.errors import SettingError
from prismlens.models.config import LVRConfig
from prismlens.models.processor import LVRProcessor, token_id
from prismlens.training.batch import Group, Pack
from prismlens.training.examples import Example, Slotting, answer_text, encode_prompt, make_example
from prismlens.training.variants import Variant
from prismlens.types import LETTERS

TOKENS_PER_CELL = 2
"""Image tokens along a cell's side."""
FACTS = (4, 4, len(SHAPES), len(COLORS))
"""What is known of an object that a question names, and how many values each has: row, column, shape, colour."""
MATCH = "match"
"""The kind of the questions that teach reading alone."""
MIX = (("attribute", 3), ("relation", 2))
"""Questions of each kind about each scene, where a phase does not say otherwise."""
_NO_PICTURE = Image.new("RGB", (1, 1))
"""Training reads cached merger outputs, so the items made on the way need no picture."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Scenes with their merger outputs, computed once."""

    scenes: Sequence[Scene]
    features: Sequence[Float[Tensor, "_ d_model"]]
    """One tensor a scene; canvases differ in their number of tokens."""


@dataclass(frozen=True, eq=False)
class ScenePacks:
    """One pack a scene; pack `i` is a pure function of the seed and of `i`, so a run can go on anywhere.

    Args:
        pool: the scenes.
        variant: its phases say which questions are asked at which step.
        config, processor: of the model; the processor adds no start marker.
        slotting: the variant's stages.
        batch: packs an optimiser step.
        seed: of scenes, questions, letters and noise.
    """

    pool: Pool
    variant: Variant
    config: LVRConfig
    processor: LVRProcessor
    slotting: Slotting
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.pool.scenes) < self.batch:
            raise SettingError(
                f"a pool of {len(self.pool.scenes)} scenes", needed=f"at least {self.batch}, as many as a batch has"
            )

    def __len__(self) -> int:
        return self.variant.steps * self.batch

    def __getitem__(self, index: int) -> Pack:
        step = index // self.batch
        # A step's scenes are all different, so the order is drawn for the whole step.
        order = np.random.default_rng([self.seed, step]).choice(len(self.pool.scenes), self.batch, replace=False)
        place = int(order[index % self.batch])
        # A trailing 0 would give the stream of the order again.
        rng = np.random.default_rng([self.seed, step, 1 + index % self.batch])
        phase = self.variant.phase_at(step)
        scene = self.pool.scenes[place]
        questions = scene_questions(scene, rng, dict(self.variant.phases[phase].mix or MIX))
        grid = (scene.rows * TOKENS_PER_CELL, scene.columns * TOKENS_PER_CELL)
        encoded = [self._example(scene, grid, question, rng) for question in questions]
        group = Group(encoded[0][0], tuple(example for _, example in encoded), grid, self.pool.features[place])
        return Pack((group,), phase, seed=int(rng.integers(2**62)))

    def _example(
        self, scene: Scene, grid: tuple[int, int], question: Question, rng: np.random.Generator
    ) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], Example]:
        """The prefix's ids and segments, and the question with its right option under a random letter."""
        item = question.item(scene, LETTERS[rng.integers(4)], rng, "training", _NO_PICTURE)
        prefix, prompt = encode_prompt(self.processor, item, grid[0] * grid[1])
        example = make_example(
            self.config, self.processor, item, prompt, grid, self.slotting, answer=answer_text(item),
            skip_first=question.kind == MATCH, facts=_facts(self.processor, question, prompt.ids),
        )  # fmt: skip
        return (prefix.ids, prefix.segments), example


def sample_scenes(count: int, seed: int, split: str = "train") -> list[Scene]:
    """`count` scenes of a split from one seed."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def scene_questions(scene: Scene, rng: np.random.Generator, mix: Mapping[str, int]) -> list[Question]:
    """Random questions about one scene, without repetition where there are enough.

    Args:
        scene: what to ask about.
        rng: draws them.
        mix: how many of each kind: ``"attribute"``, ``"relation"``, ``"match"``.

    Raises:
        SettingError: a kind that there is not.
    """
    pools = {"attribute": attribute_questions(scene, rng), "relation": relation_questions(scene)}
    unknown = sorted({*mix} - {*pools, MATCH})
    if unknown:
        raise SettingError(f"a mix with questions of kind {unknown[0]!r}", needed=f"{', '.join(pools)} or {MATCH}")
    picked = []
    for kind, count in mix.items():
        if kind == MATCH:
            picked += [match_question(rng) for _ in range(count)]
            continue
        pool = pools[kind]
        order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))])[:count]
        picked += [pool[i] for i in order]
    return picked


def match_question(rng: np.random.Generator) -> Question:
    """A reading lesson that needs no image: given the word, which letter stands before it among the options?

    The question does not name the word, or the letter could be read off the prompt. The word itself cannot be known, so
    only the letter is a label.
    """
    words = (list(COLORS), list(SHAPES), list(RELATIONS.values()))[rng.integers(3)]
    chosen = [words[i] for i in rng.permutation(len(words))[:4]]
    return Question("reading", MATCH, "What is it?", chosen[0], tuple(chosen[1:]), ())


def _facts(
    processor: LVRProcessor, question: Question, prompt: Sequence[int]
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Where in the prompt an object is named (by shape, or by colour in a question for its shape), and its `FACTS`."""
    out = []
    for thing in question.things:
        name = thing.color if question.kind == "shape" else thing.shape
        token = token_id(processor.tokenizer, "Ġ" + name)
        known = (thing.row, thing.column, SHAPES.index(thing.shape), list(COLORS).index(thing.color))
        out.append((list(prompt).index(token), known))
    return tuple(out)
