"""Where an answer starts and what it chooses, against tables written by hand and a search of the whole vocabulary."""

import pytest

from prismlens.models.answers import answer_start, chosen_letter, letter_ids
from prismlens.models.processor import LVRProcessor
from prismlens.training.architecture import tiny_processor

ABCD = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def processor() -> LVRProcessor:
    return tiny_processor(start=True)


def pieces(processor: LVRProcessor, *texts: str) -> list[int]:
    """Token ids of texts that are encoded one by one, so that the pieces do not merge."""
    return [id_ for text in texts for id_ in processor.tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    ("texts", "start"),
    [
        ((" red", "<answer>", "B", "</answer>", "<|im_end|>"), 2),
        (("<answer>", " ", "B"), 2),
        (("<answer>", "\n", "\n", "B"), 3),
        (("<answer>", " red"), 1),  # the token that holds blank and text together
        (("B", "<answer>", "C", "<answer>", "D"), 2),  # the first tag counts
        (tuple("<answer>B"), 8),  # a tag in eight tokens
        (tuple("red <answer> B"), 13),
        ((" ", "\n", "B"), 2),
        (("<|lvr_latent_end|>", "<|lvr_end|>", "B"), 2),
        (("<|lvr_end|>", "(", "B", ")"), 1),
        (("<answer", "B"), 0),  # no tag, so the first token
        (("<answer>",), None),
        (("<answer>", " ", "\n"), None),
        (("<answer>", "</answer>"), None),
        (("<answer>", " ", "</answer>", "<|im_end|>"), None),
        (("<answer>", "<|im_end|>"), None),
        (("<|lvr_end|>", "<|im_end|>"), None),
        ((" ",), None),
        ((), None),
    ],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_first_token_of_the_answers_text(processor: LVRProcessor, texts: tuple[str, ...], start: int | None):
    control = {"<|lvr_latent_end|>", "<|lvr_end|>", "<|im_end|>"}
    for text in control & set(texts):
        assert len(pieces(processor, text)) == 1
    assert answer_start(processor, pieces(processor, *texts)) == start


def test_half_a_character_before_or_after_the_tag_does_not_shift_the_start(processor: LVRProcessor):
    before = pieces(processor, "日")
    assert len(before) == 3  # one token a byte
    assert answer_start(processor, [*before, *pieces(processor, "<answer>", "B")]) == 4
    assert answer_start(processor, pieces(processor, "<answer>", "日")) == 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer> b </answer>", "B"),
        ("red<answer>\nC", "C"),
        ("A<answer>D</answer>", "D"),
        ("<answer>A</answer><answer>B</answer>", "A"),
        ("<answer>E</answer>", None),
        ("<answer>(B)</answer>", None),  # the first character, nothing cleverer
        ("<answer></answer>", None),
        ("<answer>", None),
        ("<answer>  ", None),
        ("<answer>2", None),
        ("B", "B"),
        (" (C) ", "C"),
        ("D) red", "D"),
        ("B.", "B"),
        ("B: red", "B"),
        ("b", None),
        ("E", None),
        ("Because", None),
        ("B2", None),
        ("BC", None),
        ("The answer is B", None),
        ("", None),
        (" \n", None),
    ],
)
@pytest.mark.parametrize("letters", [ABCD, "ABCD"], ids=["tuple", "text"])
def test_the_option_that_a_text_chooses(text: str, letter: str | None, letters):
    assert chosen_letter(text, letters) == letter


def test_without_options_nothing_is_chosen():
    assert chosen_letter("A", ()) is None
    assert chosen_letter("<answer>A", ()) is None
    assert chosen_letter("<answer>", "") is None


def test_two_options_leave_the_third_letter_out():
    assert [chosen_letter(f"<answer>{letter}", ABCD[:2]) for letter in ABCD] == ["A", "B", None, None]


def test_spellings_are_the_tokens_of_the_vocabulary_that_read_as_the_letter(processor: LVRProcessor):
    words = [*ABCD, "red", "Z"]
    vocabulary = {id_: processor.decode([id_]) for id_ in range(len(processor.tokenizer))}
    wanted = [tuple(sorted(i for i, text in vocabulary.items() if text in (word, f" {word}"))) for word in words]
    assert letter_ids(processor, words) == wanted
    assert all(wanted) and len(wanted[4]) == 2  # "red" alone and " red": both are one token


def test_a_spelling_of_several_tokens_is_left_out(processor: LVRProcessor):
    assert letter_ids(processor, ["日", "A"])[0] == ()
    assert letter_ids(processor, []) == []
