"""Items to prompts: PIL image processor, tokenizer and chat template, with the role of every token; no torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prismlens.data.images import open_image
from prismlens.errors import CheckpointError, ItemError
from prismlens.models.tokens import END, LATENT_END, SLOT, START
from prismlens.types import Item
from prismlens.unrolled import Segment

IMAGE_PAD = "<|image_pad|>"
_HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the user's text where only the template around it is wanted."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A left-padded batch of prompts; see `Unrolled` for the meaning of the shared fields."""

    items: tuple[Item, ...]
    input_ids: Int[Tensor, "batch pos"]
    segments: Int[Tensor, "batch pos"]
    patches: Int[Tensor, "batch pos 2"]
    grids: Int[Tensor, "batch 2"]
    pixel_values: Float[Tensor, "patch pixel"]
    image_grid_thw: Int[Tensor, "batch 3"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and the `Segment` of each."""

    ids: list[int]
    segments: list[int]


class LVRProcessor:
    """Turns items into a `Prompt`.

    Args:
        image_processor: transformers' PIL processor (smart resize, patches).
        tokenizer: a fast tokenizer with a chat template.
        start: what the prompt ends with: a token that opens a stage of latents (forced entry), the start marker of a
            block of one stage (True), or nothing of the kind (False).

    Attributes:
        control_ids: ids that are never part of a text.
    """

    def __init__(
        self, image_processor: Qwen2VLImageProcessorPil, tokenizer: PreTrainedTokenizerFast, *, start: bool | str = True
    ) -> None:
        if not tokenizer.is_fast:
            raise CheckpointError(
                f"a slow tokenizer ({type(tokenizer).__name__})", needed="a fast one: roles come from character offsets"
            )
        self.image_processor, self.tokenizer, self.start = image_processor, tokenizer, start
        if isinstance(start, str):
            token_id(tokenizer, start)
        added: Any = tokenizer.get_added_vocab()
        self._reserved = tuple(sorted({*tokenizer.all_special_tokens, *added}))
        # `all_special_ids` knows only tokens with a function, such as the end of a text, and not the block's markers.
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        markers = {added[token] for token in (START, SLOT, LATENT_END, END) if token in added}
        self.control_ids = frozenset({*tokenizer.all_special_ids, *special, *markers})

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, start: bool | str = True) -> LVRProcessor:
        """Read `preprocessor_config.json` and the tokenizer of a model folder or hub id; runs no remote code."""
        return cls(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
            start=start,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both parts in transformers' own files."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(self, items: Sequence[Item]) -> Prompt:
        """Encode items; images of different sizes may share a batch.

        Raises:
            ItemError: no items, an image cannot be used, or a text holds one of the tokenizer's control tokens.
        """
        if not items:
            raise ItemError("no items", needed="at least one", cause="a filter that nothing passed")
        images = [open_image(item.image, item.id) for item in items]
        pixels = self.image_processor(images=images, return_tensors="pt")
        grid_thw = pixels["image_grid_thw"]
        grids = grid_thw[:, 1:] // self.image_processor.merge_size
        encoded = [self.encode(item, int(grid.prod())) for item, grid in zip(items, grids, strict=True)]
        width = max(len(one.ids) for one in encoded)
        input_ids = torch.full((len(encoded), width), self.pad_id)
        segments = torch.full((len(encoded), width), int(Segment.PAD))
        patches = torch.full((len(encoded), width, 2), -1)
        for row, one in enumerate(encoded):
            input_ids[row, width - len(one.ids) :] = torch.tensor(one.ids)
            segments[row, width - len(one.ids) :] = torch.tensor(one.segments)
            index = torch.arange(int(grids[row].prod()))
            patches[row, segments[row] == Segment.IMAGE] = torch.stack(
                (index // grids[row, 1], index % grids[row, 1]), 1
            )
        return Prompt(tuple(items), input_ids, segments, patches, grids, pixels["pixel_values"], grid_thw)

    @property
    def start_token(self) -> str:
        """What the prompt ends with to force entry, empty where the model enters by itself."""
        return self.start if isinstance(self.start, str) else START * self.start

    @property
    def pad_id(self) -> int:
        """The id that fills padding; never attended to."""
        token = self.tokenizer.pad_token or self.tokenizer.eos_token
        return token_id(self.tokenizer, str(token))

    def encode(self, item: Item, n_image_tokens: int) -> Encoded:
        """Token ids and segments of one prompt whose image takes `n_image_tokens`."""
        user = user_text(item)
        self._refuse_control_tokens(item, user)
        # Where the user's text stands cannot be searched for: the template itself holds words such as "assistant".
        before, _, after = self._rendered(_HOLE).partition(_HOLE)
        text = self._rendered(user)
        if text.count(IMAGE_PAD) != 1 or text != before + user + after:
            raise CheckpointError(
                f"the chat template rendered {text!r}",
                needed=f"the user's text unchanged and one {IMAGE_PAD}",
                cause="the checkpoint's chat template is not that of Qwen2.5-VL",
                fix="save the processor of the model that the checkpoint was trained from beside it",
            )
        before, after = (part.replace(IMAGE_PAD, IMAGE_PAD * n_image_tokens) for part in (before, after))
        text = before + user + after + self.start_token
        bounds = (len(before), len(before) + len(item.question.strip()), len(before) + len(user))
        tokens = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        image_id = token_id(self.tokenizer, IMAGE_PAD)
        segments = [
            int(Segment.IMAGE) if token == image_id else _segment(end, bounds)
            for token, (_, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]
        return Encoded(list(tokens["input_ids"]), segments)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _rendered(self, user: str) -> str:
        """One user turn with an image and a text, through the chat template."""
        content: Any = [{"type": "image"}, {"type": "text", "text": user}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    def _refuse_control_tokens(self, item: Item, user: str) -> None:
        found = [token for token in self._reserved if token in user]
        if found:
            raise ItemError(
                f"the text of item {item.id!r} contains {found[0]!r}",
                needed="ordinary text",
                cause="the tokenizer would read it as a control token, not as text",
                fix="remove it from the question and the options",
            )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token.

    Raises:
        CheckpointError: the tokenizer does not know it.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise CheckpointError(
            f"the tokenizer has no token {token!r}",
            needed="the tokenizer of a Qwen2.5-VL",
            cause="a tokenizer of another model family",
            fix="save the tokenizer that the model was trained with beside it",
        )
    return found


def user_text(item: Item) -> str:
    """The question, then one line with the options: ``(A) red (B) blue``."""
    options = " ".join(f"({letter}) {text}" for letter, text in zip(item.letters, item.options, strict=True))
    return item.question.strip() + (f"\n{options}" if options else "")


def _segment(end: int, bounds: tuple[int, int, int]) -> int:
    """The segment of a text token that ends at character `end`; bounds: question start, question end, user end."""
    names = (Segment.TEMPLATE, Segment.QUESTION, Segment.OPTIONS, Segment.LEAD)
    return int(names[sum(end > bound for bound in bounds)])
