"""The roles that have a name: the segments, and what hangs off image, latent and answer; knows no text or operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prismlens.positions.boxes import box_tokens
from prismlens.positions.role import Role
from prismlens.positions.stage import Stage, after, before
from prismlens.unrolled import Segment, Unrolled

PROMPT = (Segment.TEMPLATE, Segment.IMAGE, Segment.QUESTION, Segment.OPTIONS, Segment.LEAD)
"""Everything up to and including the lead."""


@dataclass(frozen=True, repr=False)
class Named(Role):
    """A role with an entry in `MASKS`, and so one word or two (``question``, ``answer.first``)."""

    name: str

    def mask(self, unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        """The mask that the table gives for the name."""
        return MASKS[self.name](unrolled)

    def why(self, unrolled: Unrolled, row: int) -> str:
        """What the row lacks."""
        return f"{self}: {WHY.get(self.name, _no_such)(unrolled, row)}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class Image(Named):
    """The image tokens."""

    name: str = "image"

    @property
    def box(self) -> Role:
        """The image tokens inside the item's boxes (all of them together), by the rule of `box_tokens`."""
        return Named("image.box")


@dataclass(frozen=True, repr=False)
class Answer(Named):
    """Everything after the (last) latent block; everything generated where there is no block."""

    name: str = "answer"

    @property
    def first(self) -> Role:
        """The first token of the answer's text."""
        return Named("answer.first")

    @property
    def source(self) -> Role:
        """The position whose state produces the first token of the answer's text: the one before it."""
        return Named("answer.source")


@dataclass(frozen=True, repr=False)
class Latent(Named):
    """The positions where a vector was fed back; an index is a latent step."""

    name: str = "latent"

    def order(self, unrolled: Unrolled) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """The latent steps, and how many latents each row has (also while only some of its columns are there)."""
        return unrolled.steps, unrolled.n_latents

    @property
    def source(self) -> Role:
        """The positions p - 1 whose final state becomes the latent at p; an index is the step of that latent."""
        return LatentSource()

    @property
    def end(self) -> Role:
        """The position after the last latent of all."""
        return Named("latent.end")

    def stage(self, name: str) -> Stage:
        """The latents of one named stage, or the free tokens (``"free"``); resolving it fails on a model without it."""
        return Stage(name)


@dataclass(frozen=True, repr=False)
class LatentSource(Named):
    """The positions whose final state becomes a latent, numbered by the step of that latent."""

    name: str = "latent.source"

    def order(self, unrolled: Unrolled) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """The step of the latent that each position produces, and how many latents each row has."""
        steps = torch.full_like(unrolled.steps, -1)
        steps[:, :-1] = unrolled.steps[:, 1:]
        return torch.where(self.mask(unrolled), steps, -1), unrolled.n_latents


def _segment(*segments: Segment) -> Callable[[Unrolled], Bool[Tensor, "batch pos"]]:
    """A mask function: True where the position belongs to one of the segments."""

    def mask(unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
        return torch.isin(unrolled.segments, torch.tensor(segments, device=unrolled.device))

    return mask


def _column(columns: Int[Tensor, " batch"], unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
    """True at one column a row, nowhere in a row whose column is negative or not there yet."""
    return (torch.arange(unrolled.shape[1], device=unrolled.device) == columns[:, None]) & unrolled.valid


def _box(unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
    """The image tokens that the boxes of each row's item cover."""
    mask = torch.zeros_like(unrolled.valid)
    for row, item in enumerate(unrolled.items):
        if not item.boxes:
            continue
        rows, columns = unrolled.grids[row].tolist()
        tokens = sorted({token for box in item.boxes for token in box_tokens(box, (rows, columns))})
        place = unrolled.patches[row, :, 0] * columns + unrolled.patches[row, :, 1]
        mask[row] = torch.isin(place, torch.tensor(tokens, device=place.device))
    return mask & (unrolled.segments == Segment.IMAGE)


def _latent_end(unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
    """The position after the latent with the row's highest step."""
    last = (unrolled.steps >= 0) & (unrolled.steps == unrolled.n_latents[:, None] - 1)
    return after(last) & unrolled.valid


def _answer_source(unrolled: Unrolled) -> Bool[Tensor, "batch pos"]:
    """The column before ``answer_first``; rows without an answer have -1 there and -2 here."""
    return _column(unrolled.answer_first - 1, unrolled)


MASKS: Mapping[str, Callable[[Unrolled], Bool[Tensor, "batch pos"]]] = MappingProxyType(
    {
        "template": _segment(Segment.TEMPLATE),
        "image": _segment(Segment.IMAGE),
        "question": _segment(Segment.QUESTION),
        "options": _segment(Segment.OPTIONS),
        "lead": _segment(Segment.LEAD),
        "latent": _segment(Segment.LATENT),
        "between": _segment(Segment.BETWEEN),
        "answer": _segment(Segment.ANSWER),
        "prompt": _segment(*PROMPT),
        "image.box": _box,
        "latent.source": lambda unrolled: before(_segment(Segment.LATENT)(unrolled)) & unrolled.valid,
        "latent.end": _latent_end,
        "answer.first": lambda unrolled: _column(unrolled.answer_first, unrolled),
        "answer.source": _answer_source,
    }
)
"""What each name means, as a function of the unrolled batch."""


def _no_such(unrolled: Unrolled, row: int) -> str:
    return "no such position"


def _no_latent(unrolled: Unrolled, row: int) -> str:
    n = int(unrolled.n_latents[row])
    return f"nothing follows the {n} latents yet" if n else "no latents were emitted"


def _no_box(unrolled: Unrolled, row: int) -> str:
    return "its image tokens are not here" if unrolled.items[row].boxes else "the item has no boxes"


def _no_answer(unrolled: Unrolled, row: int) -> str:
    first = int(unrolled.answer_first[row])
    return "no answer text was found (answer_first is -1)" if first < 0 else f"column {first} is not here"


WHY: Mapping[str, Callable[[Unrolled, int], str]] = MappingProxyType(
    {
        "latent": _no_latent,
        "latent.source": _no_latent,
        "latent.end": _no_latent,
        "image.box": _no_box,
        "answer.first": _no_answer,
        "answer.source": _no_answer,
    }
)
"""Why a name is missing in a row, where there is more to say than that it is."""

template = Named("template")
image = Image()
question = Named("question")
options = Named("options")
lead = Named("lead")
between = Named("between")
latent = Latent()
answer = Answer()
prompt = Named("prompt")

NAMES: Mapping[str, Role] = MappingProxyType(
    {
        **{str(role): role for role in (template, image, question, options, lead, latent, between, answer, prompt)},
        **{str(role): role for role in (image.box, latent.source, latent.end, answer.first, answer.source)},
    }
)
"""Every named role under the text that a user writes for it."""
