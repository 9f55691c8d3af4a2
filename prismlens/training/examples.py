"""One item as training tokens: prompt, the slots of every stage with their targets, answer; knows no batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismlens.errors import ItemError
from prismlens.models.config import LVRConfig
from prismlens.models.processor import LVRProcessor
from prismlens.positions import box_tokens, enlarged, slot_tokens
from prismlens.training.markers import Opening
from prismlens.training.variants import Stage
from prismlens.types import Box, Item
from prismlens.unrolled import Segment

IGNORE = -100
"""The label of columns that predict nothing."""


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive tokens of one kind.

    Args:
        ids, segments: of each token.
        slots: for the latents of a stage the image token that each is taught to resemble; empty for text.
        boxes: for each slot the number of the item's box that it belongs to.
        stage: the index of the latents' stage among the stages with latents, -1 for text.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...]
    slots: tuple[int, ...] = ()
    boxes: tuple[int, ...] = ()
    stage: int = -1


@dataclass(frozen=True, eq=False)
class Example:
    """One question and its answer, after the prefix (turn start and image) that it may share with others.

    Args:
        id: of the item, for messages.
        parts: the prompt with the first stage's start marker, then latents and text in turn, the answer last.
        labels: for every token of all parts the id that it should predict, IGNORE where there is none.
        first_word: the first token of the answer's text; -1 where it cannot be known from the image.
        facts: per index into the prompt what is known of an object named there.
    """

    id: str
    parts: tuple[Part, ...]
    labels: tuple[int, ...]
    first_word: int = -1
    facts: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def n_slots(self) -> int:
        """Number of latents."""
        return sum(len(part.slots) for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self.parts)


@dataclass(frozen=True)
class Slotting:
    """How boxes become slots: the stages with latents, in order, and how many latents each has.

    Args:
        stages: those of the variant that hold latents.
        openings: their markers.
        latents: latents a stage, or None for one latent a token of the box.
    """

    stages: tuple[Stage, ...]
    openings: tuple[Opening, ...]
    latents: tuple[int, ...] | None

    def slots(self, number: int, boxes: Sequence[Box], grid: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Image tokens of one stage's slots, and the box that each belongs to."""
        scaled = [enlarged(box, self.stages[number].scale) for box in boxes]
        if self.latents is None:
            per_box = [box_tokens(box, grid) for box in scaled]
        else:
            steps = self.latents[number]
            counts = [steps * (i + 1) // len(scaled) - steps * i // len(scaled) for i in range(len(scaled))]
            per_box = [slot_tokens([box], grid, n) if n else [] for box, n in zip(scaled, counts, strict=True)]
        tokens = [token for part in per_box for token in part]
        return tokens, [i for i, part in enumerate(per_box) for _ in part]


def answer_text(item: Item) -> str:
    """What models are taught to write about an item with options: the content, then its letter inside the tag."""
    return f" {item.content}<answer>{item.answer}</answer>"


def encode_prompt(processor: LVRProcessor, item: Item, n_image_tokens: int) -> tuple[Part, Part]:
    """The prefix that items about the same image share (up to the image's end marker), and the rest of the prompt."""
    encoded = processor.encode(item, n_image_tokens)
    cut = next(i for i, segment in enumerate(encoded.segments) if segment == Segment.QUESTION)
    ids, segments = tuple(encoded.ids), tuple(encoded.segments)
    return Part(ids[:cut], segments[:cut]), Part(ids[cut:], segments[cut:])


def make_example(
    config: LVRConfig,
    processor: LVRProcessor,
    item: Item,
    prompt: Part,
    grid: tuple[int, int],
    slotting: Slotting,
    *,
    answer: str,
    before: str = "",
    writes_start: bool = False,
    skip_first: bool = False,
    facts: tuple[tuple[int, tuple[int, ...]], ...] = (),
) -> Example:
    """Put prompt, latent block and answer together.

    Args:
        config: knows the slot's and the free token's id.
        processor: its tokenizer, and its end-of-turn token.
        item: with boxes where there are latents.
        prompt: what `encode_prompt` returned second.
        grid: rows and columns of image tokens.
        slotting: the stages.
        answer: what is written after the block; the end of the turn is added.
        before: what the model itself writes before the block, perhaps nothing.
        writes_start: the model writes the start marker too, after `before` or as its first token, so it is a label.
        skip_first: the answer's first word cannot be known and is no label.
        facts: see `Example`.

    Raises:
        ItemError: latents are asked for and the item has no box.
    """
    if slotting.stages and not item.boxes:
        raise ItemError(
            f"item {item.id!r} has no boxes",
            needed="at least one box: latents are taught the image tokens inside",
            fix="give `boxes=` as normalised xyxy, or train a variant without latents (sft)",
        )
    tokenizer = processor.tokenizer
    own: list[int] = list(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else []
    start = [slotting.openings[0].start] if slotting.openings else []
    lead = [int(Segment.LEAD)] * (len(own) + len(start))
    parts = [Part((*prompt.ids, *own, *start), (*prompt.segments, *lead))]
    text: list[int] = list(tokenizer(answer + str(tokenizer.eos_token), add_special_tokens=False)["input_ids"])
    for number, opening in enumerate(slotting.openings):
        tokens, boxes = slotting.slots(number, item.boxes, grid)
        slot = (config.lvr_id or 0,) * len(tokens)
        parts.append(Part(slot, (int(Segment.LATENT),) * len(tokens), tuple(tokens), tuple(boxes), number))
        last = number == len(slotting.openings) - 1
        ids = (*opening.close, *text) if last else opening.close
        parts.append(Part(ids, (int(Segment.ANSWER if last else Segment.BETWEEN),) * len(ids)))
    if not slotting.openings:
        parts.append(Part(tuple(text), (int(Segment.ANSWER),) * len(text)))
    n_text = len(text)
    # A learned end vector takes the place of the end marker's embedding, so the marker is no label either.
    never = {config.lvr_id, config.free_id, config.lvr_latent_end_id if config.latent_end_token else None} - {None}
    known = _labels(parts, len(prompt.ids) - 1, writes_start or bool(own), never)
    if skip_first:
        known[len(known) - n_text - 1] = IGNORE
    return Example(item.id, tuple(parts), tuple(known), -1 if skip_first else text[0], facts)


def _labels(parts: Sequence[Part], last_given: int, writes_start: bool, never: set[int | None]) -> list[int]:
    """The next token of every token from the end of the prompt on, IGNORE before it, and where the next is a slot or a
    free token, neither of which is ever a label; the start marker is one only where the model has to write it."""
    ids = [token for part in parts for token in part.ids]
    labels = [IGNORE if token in never else token for token in ids[1:]] + [IGNORE]
    first = last_given if writes_start or (len(parts) == 2 and not parts[1].slots) else len(parts[0].ids) - 1
    return [IGNORE] * first + labels[first:]
