"""Training sequences token by token: prompts, slots of every stage, markers, labels; and boxes worked out by hand."""

from dataclasses import asdict
from functools import cache

import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from prismlens.errors import CheckpointError, ItemError
from prismlens.models.tokens import BLOCK_TOKENS
from prismlens.positions import box_tokens, enlarged
from prismlens.training.architecture import tiny_tokenizer
from prismlens.training.examples import (
    IGNORE,
    Example,
    Part,
    Slotting,
    answer_text,
    encode_prompt,
    make_example,
)
from prismlens.training.markers import openings, stage_config
from prismlens.training.prepare import Prepared
from prismlens.training.protocol import FAIR, PAPER, Protocol
from prismlens.training.variants import CONTEXT, FREE, TARGET, VARIANTS, Stage, Variant
from prismlens.types import Item
from prismlens.unrolled import Segment
from tests.training_cases import ready_for

START, SLOT, LEND, END, CTX, CTX_END, FREE_START, FREE_ID, FREE_END, TGT, TGT_END = range(7, 18)
EOS = 2
GRID = (6, 6)
MIDDLE = (1 / 3, 1 / 3, 2 / 3, 2 / 3)
"""Rows and columns 2 and 3 of six: tokens 14, 15, 20, 21. Enlarged by 1.5 it reaches from 0.25 to 0.75, that is from
fine cell 3 to 9 of 12, and covers rows and columns 1 to 4."""
L, A, B, X = int(Segment.LEAD), int(Segment.ANSWER), int(Segment.BETWEEN), int(Segment.LATENT)
N = IGNORE


def item_with(*boxes: tuple[float, ...]) -> Item:
    picture = Image.new("RGB", (84, 84))
    return Item(picture, "What is the color of the circle?", ("red", "blue"), answer="B", boxes=boxes, id="it")


def example_of(ready: Prepared, item: Item, grid: tuple[int, int] = GRID, **kwargs) -> tuple[Part, Example]:
    _, prompt = encode_prompt(ready.plain, item, grid[0] * grid[1])
    answer = kwargs.pop("answer", answer_text(item))
    return prompt, make_example(
        ready.model.config, ready.plain, item, prompt, grid, ready.slotting, answer=answer, **kwargs
    )


def flat(example: Example, name: str, prompt: Part) -> list[int]:
    """One value a token after the prompt."""
    return [value for part in example.parts for value in getattr(part, name)][len(prompt.ids) :]


def words(ready: Prepared, item: Item) -> list[int]:
    """The ids of what is written after the block, end of the turn included."""
    return ready.plain.tokenizer(f" {item.content}<answer>{item.answer}</answer>")["input_ids"] + [EOS]


def test_what_is_written_about_an_item():
    assert answer_text(item_with()) == " blue<answer>B</answer>"


def test_a_block_of_one_stage():
    ready, item = ready_for(VARIANTS["lvr"]), item_with(MIDDLE)
    prompt, example = example_of(ready, item)
    text = words(ready, item)
    assert flat(example, "ids", prompt) == [START, SLOT, SLOT, SLOT, SLOT, LEND, END, *text]
    assert flat(example, "segments", prompt) == [L, X, X, X, X, A, A, *[A] * len(text)]
    assert example.labels == (*[N] * len(prompt.ids), N, N, N, N, LEND, END, *text, N)
    assert asdict(example.parts[1]) == {
        "ids": (SLOT,) * 4, "segments": (X,) * 4, "slots": (14, 15, 20, 21), "boxes": (0,) * 4, "stage": 0,
    }  # fmt: skip
    assert (example.n_slots, len(example), example.first_word) == (4, len(example.labels), text[0])


def test_a_model_without_latents_is_taught_from_the_end_of_its_prompt():
    ready, item = ready_for(VARIANTS["sft"]), item_with()
    prompt, example = example_of(ready, item)
    text = words(ready, item)
    assert flat(example, "ids", prompt) == text
    assert example.labels == (*[N] * (len(prompt.ids) - 1), *text, N)
    assert example.n_slots == 0
    _, thinking = example_of(ready, item, before="red blue")
    lead = ready.plain.tokenizer("red blue")["input_ids"]
    assert thinking.labels == (*[N] * (len(prompt.ids) - 1), *lead, *text, N)


def test_two_stages():
    ready, item = ready_for(VARIANTS["p-lvr-2"]), item_with(MIDDLE)
    prompt, example = example_of(ready, item)
    text = words(ready, item)
    assert flat(example, "ids", prompt) == [
        CTX, SLOT, SLOT, LEND, CTX_END, TGT, SLOT, SLOT, LEND, TGT_END, *text,
    ]  # fmt: skip
    assert flat(example, "segments", prompt) == [L, X, X, B, B, B, X, X, A, A, *[A] * len(text)]
    assert example.labels[len(prompt.ids) :] == (N, N, LEND, CTX_END, TGT, N, N, LEND, TGT_END, *text, N)
    assert set(example.labels[: len(prompt.ids)]) == {N}
    context, target = example.parts[1], example.parts[3]
    # Sixteen tokens from row 1, column 1 on: the first of each half; then the first and the third of four.
    assert (context.slots, context.stage, target.slots, target.stage) == ((7, 19), 0, (14, 20), 1)


def test_three_stages():
    ready, item = ready_for(VARIANTS["p-lvr-3"]), item_with(MIDDLE)
    prompt, example = example_of(ready, item)
    text = words(ready, item)
    assert flat(example, "ids", prompt) == [
        CTX, SLOT, SLOT, LEND, CTX_END, FREE_START, *[FREE_ID] * 6, LEND, FREE_END, TGT,
        SLOT, SLOT, LEND, TGT_END, *text,
    ]  # fmt: skip
    assert flat(example, "segments", prompt) == [L, X, X, *[B] * 12, X, X, A, A, *[A] * len(text)]
    assert example.labels[len(prompt.ids) :] == (
        N, N, LEND, CTX_END, FREE_START, N, N, N, N, N, N, LEND, FREE_END, TGT,
        N, N, LEND, TGT_END, *text, N,
    )  # fmt: skip
    assert [part.stage for part in example.parts] == [-1, 0, -1, 1, -1]


def test_one_slot_a_token_of_the_box():
    ready, item = ready_for(VARIANTS["p-lvr-2"], protocol=PAPER), item_with(MIDDLE)
    _, example = example_of(ready, item)
    square = tuple(6 * row + column for row in range(1, 5) for column in range(1, 5))
    assert example.parts[1].slots == square and example.parts[3].slots == (14, 15, 20, 21)
    assert set(example.parts[1].boxes) == {0}


def test_several_boxes_share_a_budget_and_have_all_their_tokens_without_one():
    boxes = (MIDDLE, (0.0, 0.0, 1 / 6, 1 / 6), (0.5, 0.0, 0.6, 0.01))
    budget = ready_for(VARIANTS["lvr"], steps=8).slotting
    # 8 over three boxes: 2, 3, 3; a box of one token repeats it.
    assert budget.slots(0, boxes, GRID) == ([14, 20, 0, 0, 0, 3, 3, 3], [0, 0, 1, 1, 1, 2, 2, 2])
    every = Slotting(budget.stages, budget.openings, None)
    assert every.slots(0, boxes, GRID) == ([14, 15, 20, 21, 0, 3], [0, 0, 0, 0, 1, 2])
    few = Slotting(budget.stages, budget.openings, (2,))
    assert few.slots(0, boxes, GRID) == ([0, 3], [1, 2]), "the first boxes have none"


@cache
def ready_under(name: str, protocol: Protocol) -> Prepared:
    return ready_for(VARIANTS[name], protocol=protocol)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (6, 6), (6, 9), (40, 3)])
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.999, 0.999, 1.0, 1.0), (0.5, 0.5, 0.5001, 0.5001), MIDDLE])
@pytest.mark.parametrize("name", ["lvr", "p-lvr-3"])
def test_any_box_on_any_grid_has_slots_inside_the_image(name: str, box: tuple, grid: tuple[int, int]):
    for protocol in (FAIR, PAPER):
        ready = ready_under(name, protocol)
        _, example = example_of(ready, item_with(box), grid)
        for number, part in enumerate(part for part in example.parts if part.slots):
            covered = box_tokens(enlarged(box, ready.slotting.stages[number].scale), grid)
            assert set(part.slots) <= set(covered) and len(part.slots) == len(part.ids)
            assert len(part.slots) == (len(covered) if protocol is PAPER else 4 if name == "lvr" else 2)


def test_boxes_are_enlarged_about_their_centres_and_clipped():
    assert enlarged((0.4, 0.2, 0.6, 0.6), 1.5) == pytest.approx((0.35, 0.1, 0.65, 0.7))
    assert enlarged((0.0, 0.8, 0.2, 1.0), 1.5) == pytest.approx((0.0, 0.75, 0.25, 1.0))
    assert enlarged((0.0, 0.0, 1.0, 1.0), 1.5) == (0, 0, 1, 1)
    assert enlarged(MIDDLE, 1.0) is MIDDLE


@pytest.mark.parametrize("name", ["lvr", "p-lvr-3"])
@pytest.mark.parametrize("before", ["", "red"])
def test_a_start_marker_that_the_model_writes_is_a_label(name: str, before: str):
    ready, item = ready_for(VARIANTS[name], emitted=True), item_with(MIDDLE)
    start = CTX if name == "p-lvr-3" else START
    own = ready.plain.tokenizer(before)["input_ids"] if before else []
    prompt, example = example_of(ready, item, before=before, writes_start=True)
    assert flat(example, "ids", prompt)[: len(own) + 2] == [*own, start, SLOT]
    assert flat(example, "segments", prompt)[: len(own) + 2] == [*[L] * len(own), L, X]
    first = len(prompt.ids) - 1
    assert example.labels[: first + len(own) + 2] == (*[N] * first, *own, start, N)
    _, given = example_of(ready, item)
    assert given.labels[: first + 2] == (*[N] * first, N, N), "at the end of the prompt it is none"
    assert given.labels[first + 1 :] == example.labels[first + len(own) + 1 :]


@pytest.mark.parametrize("name", ["lvr", "sft", "p-lvr-3"])
def test_a_guess_is_no_label(name: str):
    ready, item = ready_for(VARIANTS[name]), item_with(MIDDLE)
    _, known = example_of(ready, item)
    _, guess = example_of(ready, item, skip_first=True)
    text = words(ready, item)
    at = len(known) - len(text) - 1
    assert known.labels[at] == text[0] and guess.labels[at] == N
    assert (*known.labels[:at], *known.labels[at + 1 :]) == (*guess.labels[:at], *guess.labels[at + 1 :])
    assert (known.first_word, guess.first_word) == (text[0], -1)


def test_with_an_end_vector_the_end_marker_is_no_label():
    ready, item = ready_for(Variant("e", "", end_vector=True)), item_with(MIDDLE)
    prompt, example = example_of(ready, item)
    text = words(ready, item)
    assert flat(example, "ids", prompt) == [START, *[SLOT] * 4, LEND, END, *text]
    assert example.labels[len(prompt.ids) :] == (N, N, N, N, N, END, *text, N)


def test_latents_need_a_box():
    with pytest.raises(ItemError, match="item 'it' has no boxes"):
        example_of(ready_for(VARIANTS["lvr"]), item_with())


def test_the_prefix_ends_with_the_image_and_what_follows_differs_between_questions():
    ready = ready_for(VARIANTS["lvr"])
    encoded = [
        encode_prompt(ready.plain, Item(Image.new("RGB", (84, 84)), question, id="i"), 4)
        for question in ("Where is the red circle?", "What is it?")
    ]
    (prefix, first), (again, second) = encoded
    assert (prefix.ids, prefix.segments) == (again.ids, again.segments)
    assert prefix.ids[-5:-1] == (5,) * 4 and prefix.ids[-1] == 4, "four image tokens and the end of the image"
    assert first.segments[0] == second.segments[0] == Segment.QUESTION
    whole = ready.plain.encode(Item(Image.new("RGB", (84, 84)), "What is it?", id="i"), 4)
    assert (*again.ids, *second.ids) == tuple(whole.ids) and START not in second.ids


def test_openings_hold_what_lies_between_stages():
    tokenizer = ready_for(VARIANTS["lvr"]).plain.tokenizer
    (block,) = openings((Stage("latent"),), tokenizer)
    assert (block.name, block.start, block.close) == ("latent", START, (LEND, END))
    context, target = openings((CONTEXT, TARGET), tokenizer)
    assert (context.name, context.start, context.close) == ("context", CTX, (LEND, CTX_END, TGT))
    assert (target.name, target.start, target.close) == ("target", TGT, (LEND, TGT_END))
    context, again = openings((CONTEXT, Stage("free", tokens=2), TARGET), tokenizer)
    assert context.close == (LEND, CTX_END, FREE_START, FREE_ID, FREE_ID, LEND, FREE_END, TGT)
    assert (again.start, again.close) == (target.start, target.close)
    assert openings((), tokenizer) == ()
    first, last = stage_config((CONTEXT, TARGET), (context, again), (4, 2), forced=True)
    assert first == {"name": "context", "start": CTX, "steps": 4, "scale": 1.5, "close": list(context.close)}
    assert (last["start"], last["steps"], last["scale"]) == (TGT, 2, 1.0)
    free = stage_config((CONTEXT, TARGET), (context, again), (4, 2), forced=False)
    assert [stage["close"] for stage in free] == [[], []]


def test_every_control_token_has_its_field():
    assert len(set(BLOCK_TOKENS.values())) == len(BLOCK_TOKENS) == 11
    config = ready_for(VARIANTS["p-lvr-3"]).model.config
    assert [getattr(config, field) for field in BLOCK_TOKENS] == [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]


def test_a_tokenizer_without_the_markers_is_refused():
    text = tiny_tokenizer().backend_tokenizer.to_str().replace("<|ctx_start|>", "<|other|>")
    with pytest.raises(CheckpointError, match="ctx_start"):
        openings((CONTEXT, FREE, TARGET), PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text)))
