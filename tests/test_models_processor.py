"""Prompts: image grids, the role of every token and M-RoPE ids, against transformers and values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from prismlens.errors import CheckpointError, ItemError
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor, token_id, user_text
from prismlens.training.architecture import initialise, tiny_config, tiny_processor, tiny_tokenizer
from prismlens.types import Item
from prismlens.unrolled import Segment

T, I, Q, O, L = Segment.TEMPLATE, Segment.IMAGE, Segment.QUESTION, Segment.OPTIONS, Segment.LEAD  # noqa: E741
FACTOR = 14
"""Pixels of a side of what one image token covers in the tiny models."""


@pytest.fixture(scope="module")
def processor() -> LVRProcessor:
    return tiny_processor(start=True)


@pytest.fixture(scope="module")
def small() -> LVRProcessor:
    """A processor that leaves images from one image token on as they are, for prompts short enough to write down."""
    size = {"shortest_edge": FACTOR**2, "longest_edge": 140**2}
    return LVRProcessor(Qwen2VLImageProcessorPil(patch_size=7, merge_size=2, size=size), tiny_tokenizer())


@pytest.fixture(scope="module")
def model(processor: LVRProcessor) -> LVRForConditionalGeneration:
    made = LVRForConditionalGeneration(tiny_config(processor.tokenizer, width=64, layers=1)).eval()
    initialise(made, 0)
    return made


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


SIZES = [
    (84, 84), (140, 140), (83, 85), (91, 77), (98, 98), (500, 333), (333, 500), (1024, 768), (1, 1), (2, 1), (3, 3),
    (4, 4), (1, 200), (200, 1), (3, 40), (40, 3), (1, 7), (3, 600), (4000, 20), (6, 1199), (139, 141), (1000, 1000),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_grid_is_smart_resizes_and_the_prompt_holds_one_token_a_cell(processor: LVRProcessor, width, height):
    prompt = processor([Item(blank(width, height), "Why?", id="q")])
    high, wide = smart_resize(height, width, FACTOR, min_pixels=84 * 84, max_pixels=140 * 140)
    assert high % FACTOR == wide % FACTOR == 0
    assert prompt.grids.tolist() == [[high // FACTOR, wide // FACTOR]]
    assert prompt.image_grid_thw.tolist() == [[1, high // 7, wide // 7]]
    cells = int(prompt.grids.prod())
    assert (prompt.input_ids == token_id(processor.tokenizer, "<|image_pad|>")).sum() == cells
    assert (prompt.segments == I).sum() == cells
    assert prompt.pixel_values.shape == (4 * cells, 3 * 2 * 7 * 7)


def test_the_smallest_sides_by_hand(processor: LVRProcessor):
    # 1 x 1 grows by sqrt(7056): 84 x 84. 200 x 1 grows by sqrt(7056 / 200) = 5.94: 1187.9 -> 1190 wide, 5.94 -> 14 high.
    assert processor([Item(blank(1, 1), "q")]).grids.tolist() == [[6, 6]]
    assert processor([Item(blank(200, 1), "q")]).grids.tolist() == [[1, 85]]
    # 500 x 333 shrinks by sqrt(166500 / 19600) = 2.915: 171.5 -> 168 wide, 114.3 -> 112 high.
    assert processor([Item(blank(500, 333), "q")]).grids.tolist() == [[8, 12]]


def test_every_token_of_a_short_prompt_by_hand(small: LVRProcessor):
    prompt = small([Item(blank(28, 14), "What is red?", ("red", "blue"), id="q")])
    found = [
        (small.decode([token]), segment)
        for token, segment in zip(prompt.input_ids[0].tolist(), prompt.segments[0].tolist(), strict=True)
    ]
    assert found == [
        ("<|im_start|>", T), ("user", T), ("\n", T), ("<|vision_start|>", T),
        ("<|image_pad|>", I), ("<|image_pad|>", I), ("<|vision_end|>", T),
        ("What", Q), (" is", Q), (" red", Q), ("?", Q),
        ("\n", O), ("(", O), ("A", O), (")", O), (" red", O), (" (", O), ("B", O), (")", O), (" blue", O),
        ("<|im_end|>", L), ("\n", L), ("<|im_start|>", L), ("assistant", L), ("\n", L), ("<|lvr_start|>", L),
    ]  # fmt: skip
    assert prompt.patches[0].tolist() == [[-1, -1]] * 4 + [[0, 0], [0, 1]] + [[-1, -1]] * 20


HARD_TEXTS = [
    ("red", ("red", "blue")),  # the question's text is an option's too
    ("(A) red (B) blue", ("red", "blue")),
    ("assistant", ()),  # words of the template itself
    ("user", ()),
    ("a", ()),
    ("vision_end|", ()),
    ("im_end", ("im_start", "assistant\n")),
    ("\ufffc", ("\ufffc",)),
    ("  spaces around \n", ("x ", " y")),
    ("two\nlines?", ("one\ntwo", "3")),
    ("Où est l'œuf 日本 🙂?", ("日", "é")),
    ("What is the color of the red?", tuple("abcdefghijklmnopqrstuvwxyz")),
    ("{{ 1 + 1 }} {% if x %}", ("<answe", "r>")),
]


@pytest.mark.parametrize(("question", "options"), HARD_TEXTS)
@pytest.mark.parametrize("start", [True, False])
def test_segments_spell_out_question_and_options_whatever_they_say(question: str, options: tuple, start: bool):
    processor = tiny_processor(start=start)
    item = Item(blank(84, 84), question, options, id="q")
    prompt = processor([item])
    ids, segments = prompt.input_ids[0], prompt.segments[0]

    def spelled(segment: Segment) -> str:
        return processor.decode(ids[segments == segment].tolist())

    assert spelled(Q) == question.strip()
    assert spelled(Q) + spelled(O) == user_text(item)
    assert spelled(O).startswith("\n(A) ") if options else spelled(O) == ""
    assert spelled(T) == "<|im_start|>user\n<|vision_start|><|vision_end|>"
    assert spelled(L) == "<|im_end|>\n<|im_start|>assistant\n" + ("<|lvr_start|>" if start else "")
    # Roles stand in order, so each is one stretch; the image is the only interruption.
    order = segments[segments != I].tolist()
    assert order == sorted(order)


def test_user_text_by_hand():
    assert user_text(Item(blank(9, 9), " Which? ", ("red", "blue"))) == "Which?\n(A) red (B) blue"
    assert user_text(Item(blank(9, 9), "Which?")) == "Which?"


def test_padding_is_on_the_left_and_changes_nothing_else(processor: LVRProcessor):
    items = [
        Item(noise(84, 98), "Why?", id="short"),
        Item(noise(120, 90), "What is the color of the red?", ("red", "blue"), id="long"),
    ]
    both, alone = processor(items), [processor([item]) for item in items]
    assert both.grids.tolist() == [[7, 6], [6, 9]]
    assert both.grids.tolist() == [one.grids[0].tolist() for one in alone]
    assert torch.equal(both.pixel_values, torch.cat([one.pixel_values for one in alone]))
    for row, one in enumerate(alone):
        pad = both.input_ids.shape[1] - one.input_ids.shape[1]
        assert (pad > 0) is (row == 0)
        assert (both.segments[row, :pad] == Segment.PAD).all() and (both.segments[row, pad:] != Segment.PAD).all()
        assert (both.input_ids[row, :pad] == token_id(processor.tokenizer, "<|endoftext|>")).all()
        assert (both.patches[row, :pad] == -1).all()
        for name in ("input_ids", "segments", "patches"):
            assert torch.equal(getattr(both, name)[row, pad:], getattr(one, name)[0])


def test_patches_name_the_cell_whose_pixels_the_image_token_holds(processor: LVRProcessor):
    rows, columns = 6, 9
    shade = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 4
    picture = Image.fromarray(np.kron(shade, np.ones((FACTOR, FACTOR), dtype=np.uint8))).convert("RGB")
    prompt = processor([Item(picture, "Why?", id="q")])
    assert prompt.grids.tolist() == [[rows, columns]]
    cells = prompt.patches[prompt.segments == I]
    assert cells.tolist() == [[row, column] for row in range(rows) for column in range(columns)]
    for index, (row, column) in enumerate(cells.tolist()):
        # Four patches a token; the first 2 * 7 * 7 numbers of a patch are its red channel.
        red = prompt.pixel_values[4 * index : 4 * index + 4, : 2 * 7 * 7]
        wanted = (shade[row, column] / 255 - OPENAI_CLIP_MEAN[0]) / OPENAI_CLIP_STD[0]
        assert (red - wanted).abs().max() < 1e-5


# ----------------------------------------------------------------------------------------------------------- pictures


def same_pixels(processor: LVRProcessor, given: Image.Image | Path, upright: Image.Image) -> bool:
    assert upright.mode == "RGB"
    one, other = (processor([Item(image, "Why?", id="q")]) for image in (given, upright))
    return torch.equal(one.pixel_values, other.pixel_values) and torch.equal(one.grids, other.grids)


def test_every_kind_of_picture_gives_the_pixels_of_the_upright_rgb_one(processor: LVRProcessor, tmp_path: Path):
    colour = noise(60, 44)
    grey = colour.convert("L")
    array = np.asarray(grey)
    grey_rgb = Image.fromarray(np.stack([array] * 3, -1))
    assert same_pixels(processor, colour.convert("RGBA"), colour)
    assert same_pixels(processor, grey, grey_rgb)
    assert same_pixels(processor, grey.convert("LA"), grey_rgb)
    deep = tmp_path / "deep.png"
    Image.fromarray(array.astype(np.uint16) * 257).save(deep)
    assert Image.open(deep).mode.startswith("I")
    assert same_pixels(processor, deep, grey_rgb)
    assert not same_pixels(processor, grey, colour)  # control: another picture has other pixels


def test_transparent_pixels_are_white(processor: LVRProcessor):
    colour = noise(60, 44)
    seen = np.array(colour)
    seen[:, :30] = 255
    alpha = np.full((44, 60, 1), 255, dtype=np.uint8)
    alpha[:, :30] = 0
    given = Image.fromarray(np.concatenate([np.asarray(colour), alpha], -1))
    assert given.mode == "RGBA"
    assert same_pixels(processor, given, Image.fromarray(seen))


def test_a_palette_is_looked_up(processor: LVRProcessor):
    table = np.array([[255, 0, 0], [0, 255, 0], [7, 8, 9]], dtype=np.uint8)
    index = np.random.default_rng(2).integers(0, 3, (44, 60), dtype=np.uint8)
    given = Image.fromarray(index, mode="L").copy()
    given.putpalette(table.tobytes())
    assert given.mode == "P"
    assert same_pixels(processor, given, Image.fromarray(table[index]))


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 1), (8, 3)])
def test_an_exif_orientation_is_applied(processor: LVRProcessor, tmp_path: Path, orientation: int, turns: int):
    upright = noise(120, 84)
    stored = np.rot90(np.asarray(upright), turns)  # the camera wrote it turned, and says so
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert same_pixels(processor, tmp_path / "turned.png", upright)


def test_a_cmyk_jpeg_keeps_its_colours(processor: LVRProcessor, tmp_path: Path):
    Image.new("CMYK", (84, 84), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    given = processor([Item(tmp_path / "cmyk.jpg", "Why?")]).pixel_values
    red, cyan = (
        processor([Item(Image.new("RGB", (84, 84), name), "Why?")]).pixel_values for name in ("#ff0000", "#00ffff")
    )
    assert (given - red).abs().max() < 0.05
    assert (given - cyan).abs().min() > 3


# ------------------------------------------------------------------------------------------------------------- M-RoPE


def test_rope_positions_by_hand_and_unaffected_by_padding(small: LVRProcessor, model: LVRForConditionalGeneration):
    # Two rows of three image tokens after four tokens; the text goes on at 4 + max(2, 3) = 7.
    before, after = [0, 1, 2, 3], [7, 8, 9, 10, 11, 12, 13, 14]
    wanted = [
        [*before, 4, 4, 4, 4, 4, 4, *after],
        [*before, 4, 4, 4, 5, 5, 5, *after],
        [*before, 4, 5, 6, 4, 5, 6, *after],
    ]
    short = Item(blank(42, 28), "red", id="short")
    long = Item(blank(28, 70), "What is the color of the red?", ("red", "blue"), id="long")
    for items in ([short], [short, long]):
        prompt = small(items)
        found = model.rope_positions(prompt.input_ids, prompt.segments != Segment.PAD, prompt.image_grid_thw)
        pad = prompt.input_ids.shape[1] - len(wanted[0])
        assert (pad > 0) is (len(items) == 2)
        assert found[:, 0].tolist() == [[0] * pad + axis for axis in wanted]
    # The longer row, a column of five rows by two: text resumes at 4 + max(5, 2) = 9.
    assert found[1, 1, :15].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9]
    assert found[2, 1, :15].tolist() == [0, 1, 2, 3, *[4, 5] * 5, 9]


def test_rope_positions_leave_nothing_on_the_module(small: LVRProcessor, model: LVRForConditionalGeneration):
    model.model.rope_deltas = None
    prompt = small([Item(blank(42, 28), "red")])
    model.rope_positions(prompt.input_ids, prompt.segments != Segment.PAD, prompt.image_grid_thw)
    assert model.model.rope_deltas is None


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|lvr|>", "<|lvr_start|>", "<answer>", "</answer>"])
@pytest.mark.parametrize("place", ["question", "option"])
def test_control_tokens_in_an_items_text_are_refused(processor: LVRProcessor, token: str, place: str):
    texts = (
        {"question": f"Why{token}?", "options": ("x",)}
        if place == "question"
        else {"question": "?", "options": ("x", f"y {token}")}
    )
    with pytest.raises(ItemError) as caught:
        processor([Item(blank(84, 84), id="q7", **texts)])
    error = caught.value
    assert error.given == f"the text of item 'q7' contains {token!r}"
    assert (error.needed, error.fix) == ("ordinary text", "remove it from the question and the options")
    assert "control token" in error.cause


def test_markers_are_control_tokens_even_where_the_tokenizer_lists_them_as_ordinary_ones():
    assert tiny_processor(start=True).control_ids == set(range(18))
    plain = tiny_tokenizer()
    for token in ("<|lvr_start|>", "<|lvr|>", "<|lvr_latent_end|>", "<|lvr_end|>", "<|tgt_start|>"):
        plain.add_tokens([AddedToken(token, special=False)])
    processor = LVRProcessor(Qwen2VLImageProcessorPil(patch_size=7), plain)
    assert set(range(16)) <= processor.control_ids and 407 not in processor.control_ids


def test_no_items_are_refused(processor: LVRProcessor):
    with pytest.raises(ItemError, match="no items\n  needed: at least one"):
        processor([])


def test_an_unusable_image_is_refused_under_the_items_id(processor: LVRProcessor, tmp_path: Path):
    good = Item(blank(84, 84), "Why?", id="good")
    with pytest.raises(ItemError, match=r"item 'bad': the image .*gone\.png does not exist"):
        processor([good, Item(tmp_path / "gone.png", "Why?", id="bad")])
    with pytest.raises(ItemError, match="item 'thin': the image is 1 x 201 pixels, an aspect ratio of 201"):
        processor([good, Item(blank(1, 201), "Why?", id="thin")])


TEMPLATES = {
    "no image": "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}",
    "two images": "<|image_pad|><|image_pad|>{{ messages[0].content[1].text }}",
    "upper case": "<|image_pad|>{{ messages[0].content[1].text | upper }}",
    "text twice": "<|image_pad|>{{ messages[0].content[1].text }}{{ messages[0].content[1].text }}",
    "no text": "<|image_pad|>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_would_misplace_roles_is_refused(name: str):
    processor = tiny_processor(start=True)
    processor.tokenizer.chat_template = TEMPLATES[name]
    with pytest.raises(
        CheckpointError,
        match=r"(?s)the chat template rendered .*needed: the user's text unchanged and one <\|image_pad\|>.*cause.*fix: save",
    ):
        processor([Item(blank(84, 84), "Why?")])


def test_a_template_with_a_system_turn_and_the_image_last_is_followed():
    processor = tiny_processor(start=False)
    processor.tokenizer.chat_template = "You are an assistant. {{ messages[0].content[1].text }}<|image_pad|> assistant"
    prompt = processor([Item(blank(84, 84), "assistant", id="q")])
    ids, segments = prompt.input_ids[0], prompt.segments[0]
    assert processor.decode(ids[segments == Q].tolist()).strip() == "assistant"
    assert (segments == Q).nonzero().max() < (segments == I).nonzero().min()


def test_a_token_that_the_tokenizer_lacks_is_named(processor: LVRProcessor):
    with pytest.raises(
        CheckpointError, match=r"the tokenizer has no token '<\|nope\|>'\n  needed: .*\n  likely cause: .*\n  fix: "
    ):
        token_id(processor.tokenizer, "<|nope|>")
