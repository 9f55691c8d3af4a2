"""Training sequences: one image, several questions that share it, each with its own latents and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import RELATIONS, Question, Scene, attribute_questions, relation_questions
from prismlens.models.config import LVRConfig
from prismlens.models.processor import IMAGE_PAD, LVRProcessor, token_id
from prismlens.positions import slot_tokens
from prismlens.types import LETTERS, Item
from prismlens.unrolled import Segment, Unrolled

_NO_PICTURE = Image.new("RGB", (1, 1))
"""Training reads cached merger outputs, so the items made on the way need no picture."""

IGNORE = -100
"""The label of positions that predict nothing."""
FACTS = (4, 4, len(SHAPES), len(COLORS))
"""What is known of an object that a question names, and how many values each has: row, column, shape, colour."""
MATCH = "match"
"""The kind of the questions that teach reading alone."""


@dataclass(frozen=True, eq=False)
class Block:
    """One question as token lists: the prompt after the shared image, and the answer after the latents."""

    prompt: list[int]
    segments: list[int]
    answer: list[int]
    slots: list[int]
    """Indices of the image tokens that the latents are taught to resemble, one a latent."""
    facts: list[tuple[int, tuple[int, ...]]]
    """Index in the prompt of every word that names an object of the scene, with the `FACTS` about that object."""
    word: int
    """The first token of the answer's text, after the forced end markers."""
    guess: bool = False
    """The first word after the latents cannot be known, and is no target."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Scenes in rows; columns are ``[prefix | prompts | latents, step by step | answers]``.

    A column belongs to one question (`blocks`, -1 for the shared prefix) and sees the prefix and its own question
    only, so every question is trained as if it were alone.
    """

    unrolled: Unrolled
    blocks: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]
    """The token that the column should predict, IGNORE where there is none."""
    words: Int[Tensor, "batch question"]
    """The first token of each question's answer."""
    facts: Int[Tensor, "batch pos fact"]
    """The `FACTS` about the object that the column names, IGNORE elsewhere."""
    sources: Int[Tensor, "batch slot"]
    """For each latent the column whose final state becomes it."""
    image_features: Float[Tensor, "image_token d_model"]
    targets: Float[Tensor, "batch slot d_model"]
    """The merger output that each latent is taught to resemble."""
    steps: int
    questions: int
    n_before: int
    """Columns before the first latent."""


def scene_questions(scene: Scene, rng: np.random.Generator, mix: Mapping[str, int]) -> list[Question]:
    """Random questions about one scene, without repetition where there are enough.

    Args:
        scene: what to ask about.
        rng: draws them.
        mix: how many of each kind: ``"attribute"``, ``"relation"``, ``"match"``.
    """
    pools = {"attribute": attribute_questions(scene, rng), "relation": relation_questions(scene)}
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
    `make_block` asks for the letter only.
    """
    words = (list(COLORS), list(SHAPES), list(RELATIONS.values()))[rng.integers(3)]
    chosen = [words[i] for i in rng.permutation(len(words))[:4]]
    return Question("reading", MATCH, "What is it?", chosen[0], tuple(chosen[1:]), ())


def make_block(
    processor: LVRProcessor,
    scene: Scene,
    question: Question,
    rng: np.random.Generator,
    steps: int,
    close: Sequence[int],
) -> Block:
    """Encode one question with its right option under a random letter."""
    item = question.item(scene, LETTERS[rng.integers(4)], rng, "training", _NO_PICTURE)
    grid = (scene.rows * 2, scene.columns * 2)
    encoded = processor.encode(item, 1)
    skip = encoded.segments.index(Segment.IMAGE) + 2
    slots = slot_tokens(item.boxes, grid, steps) if steps else []
    text = processor.tokenizer(answer_text(item), add_special_tokens=False)["input_ids"]
    answer = [*(close if steps else ()), *text]
    prompt = encoded.ids[skip:]
    facts = _facts(processor, question, prompt)
    return Block(prompt, encoded.segments[skip:], answer, slots, facts, text[0], guess=question.kind == MATCH)


def answer_text(item: Item) -> str:
    """What the models are taught to write: the answer's content, then its letter inside the tag."""
    return f" {item.content}<answer>{item.answer}</answer><|im_end|>"


def collate(
    config: LVRConfig,
    processor: LVRProcessor,
    scenes: Sequence[Scene],
    features: Sequence[Tensor],
    blocks: Sequence[Sequence[Block]],
    steps: int,
) -> Batch:
    """Lay out scenes and their questions; every scene must bring the same number of questions."""
    questions = len(blocks[0])
    prefixes = [_prefix(processor, scene) for scene in scenes]
    widths = (
        max(len(ids) for ids, _, _ in prefixes),
        max(len(b.prompt) for row in blocks for b in row),
        max(len(b.answer) for row in blocks for b in row),
    )
    n_before = widths[0] + questions * widths[1]
    total = n_before + steps * questions + questions * widths[2]
    table = _Table.empty(len(scenes), total)
    sources = np.zeros((len(scenes), steps * questions), dtype=np.int64)
    for row, ((ids, segments, positions), own) in enumerate(zip(prefixes, blocks, strict=True)):
        at = widths[0] - len(ids)
        table.put(row, at, ids, segments, positions)
        first = int(positions.max()) + 1
        for q, block in enumerate(own):
            sources[row, q::questions] = _put_block(table, config, row, q, block, (widths, questions, steps, first))
    unrolled = table.unrolled(config, n_before, steps * questions)
    targets = torch.stack(
        [
            feature[[b.slots[k] for k in range(steps) for b in own]]
            for feature, own in zip(features, blocks, strict=True)
        ]
    )
    return Batch(
        unrolled, torch.from_numpy(table.blocks), torch.from_numpy(table.labels),
        torch.tensor([[block.word for block in own] for own in blocks]), torch.from_numpy(table.facts),
        torch.from_numpy(sources), torch.cat(list(features)), targets, steps, questions, n_before,
    )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """The columns being filled, as arrays."""

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    blocks: np.ndarray
    steps: np.ndarray
    labels: np.ndarray
    facts: np.ndarray

    @classmethod
    def empty(cls, batch: int, total: int) -> _Table:
        filled = [np.full((batch, total), value) for value in (0, int(Segment.PAD), -1, -1, IGNORE)]
        ids, segments, blocks, steps, labels = filled
        return cls(
            ids,
            segments,
            np.zeros((batch, total, 3), int),
            blocks,
            steps,
            labels,
            np.full((batch, total, len(FACTS)), IGNORE),
        )

    def put(
        self, row: int, at: int, ids: list[int], segments: list[int], positions: np.ndarray, block: int = -1
    ) -> None:
        """Write consecutive columns."""
        columns = slice(at, at + len(ids))
        self.ids[row, columns], self.segments[row, columns] = ids, segments
        self.positions[row, columns], self.blocks[row, columns] = positions, block

    def unrolled(self, config: LVRConfig, n_before: int, slots: int) -> Unrolled:
        """The columns as an `Unrolled` without items, for masks and inputs."""
        batch, total = self.ids.shape
        return Unrolled(
            items=(),
            input_ids=torch.from_numpy(self.ids),
            segments=torch.from_numpy(self.segments),
            steps=torch.from_numpy(self.steps),
            patches=torch.full((batch, total, 2), -1),
            grids=torch.zeros(batch, 2, dtype=torch.long),
            position_ids=torch.from_numpy(self.positions).permute(2, 0, 1),
            latents=torch.zeros(batch, slots, config.text.hidden_size),
            n_latents=torch.full((batch,), slots),
            n_prompt=n_before,
            answer_first=torch.full((batch,), -1),
        )


def _put_block(
    table: _Table, config: LVRConfig, row: int, q: int, block: Block, layout: tuple[tuple[int, int, int], int, int, int]
) -> list[int]:
    """Write one question's prompt, latents and answer; return the source column of each of its latents."""
    (prefix, prompt, answer), questions, steps, first = layout
    at = prefix + q * prompt
    n = len(block.prompt)
    table.put(row, at, block.prompt, block.segments, first + np.arange(n)[:, None], q)
    for index, facts in block.facts:
        table.facts[row, at + index] = facts
    before = prefix + questions * prompt
    columns = [before + k * questions + q for k in range(steps)]
    for k, column in enumerate(columns):
        table.put(row, column, [config.lvr_id or 0], [int(Segment.LATENT)], np.full((1, 3), first + n + k), q)
        table.steps[row, column] = k * questions + q
    start = before + steps * questions + q * answer
    segments = [int(Segment.ANSWER)] * len(block.answer)
    table.put(row, start, block.answer, segments, first + n + steps + np.arange(len(block.answer))[:, None], q)
    chain = [at + n - 1, *columns]
    table.labels[row, chain[-1]] = IGNORE if block.guess else block.answer[0]
    table.labels[row, start : start + len(block.answer) - 1] = block.answer[1:]
    return chain[:steps]


def _prefix(processor: LVRProcessor, scene: Scene) -> tuple[list[int], list[int], np.ndarray]:
    """Ids, segments and M-RoPE ids of what all questions of a scene share: the turn's start and the image."""
    rows, columns = scene.rows * 2, scene.columns * 2
    n = rows * columns
    text = processor.tokenizer("<|im_start|>user\n<|vision_start|>", add_special_tokens=False)["input_ids"]
    pad, end = (token_id(processor.tokenizer, token) for token in (IMAGE_PAD, "<|vision_end|>"))
    head = len(text)
    image = np.stack([np.full(n, head), head + np.arange(n) // columns, head + np.arange(n) % columns], 1)
    last = np.full((1, 3), head + max(rows, columns))
    positions = np.concatenate([np.repeat(np.arange(head)[:, None], 3, 1), image, last])
    segments = [int(Segment.TEMPLATE)] * head + [int(Segment.IMAGE)] * n + [int(Segment.TEMPLATE)]
    return [*text, *[pad] * n, end], segments, positions


def _facts(processor: LVRProcessor, question: Question, prompt: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Where in the prompt an object is named (by shape, or by colour in a question for its shape), and its `FACTS`."""
    out = []
    for thing in question.things:
        name = thing.color if question.kind == "shape" else thing.shape
        token = token_id(processor.tokenizer, "Ġ" + name)
        known = (thing.row, thing.column, SHAPES.index(thing.shape), list(COLORS).index(thing.color))
        out.append((prompt.index(token), known))
    return out
