"""What a person looks at on one item, computed: shares, the sequence as pieces, maps over layers; draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prismlens.data.images import open_image
from prismlens.decodability import decodability
from prismlens.errors import ItemError, SettingError, SiteError
from prismlens.interventions import Edit, Mean, Noise, Oracle, Scale, Swap, Zero
from prismlens.interventions.operation import Operation, Structural
from prismlens.models.answers import letter_ids
from prismlens.positions import Role, image, latent
from prismlens.trace import PrismModel, Run
from prismlens.trace.checked import checked_items
from prismlens.types import Item
from prismlens.unrolled import Segment

TOP = 5
"""How many tokens a cell of the lens names."""
STATE = "blocks.{layer}.hook_resid_post"


KNOBS: Mapping[str, tuple[Callable[[float], Operation | Structural], str]] = MappingProxyType(
    {
        "fade to zero": (lambda strength: Scale(1 - strength), "0 leaves the vector, 1 is zero"),
        "noise": (lambda strength: Noise(5 * strength, unit="std"), "1 is five standard deviations"),
        "swap with another item": (lambda strength: Swap(), ""),
        "mean of all items": (lambda strength: Mean(), ""),
        "image feature (oracle)": (lambda strength: Oracle(), ""),
    }
)
"""Operation by name: from a strength in 0..1, and what the strength means (nothing where there is none)."""
SITES = ("hook_latent", STATE)
LENS, PROBE, ZEROING, PATCHING = "logit lens", "probe", "effect of zeroing", "effect of patching"
MAPS: Mapping[str, tuple[bool, str]] = MappingProxyType(
    {
        LENS: (False, "share of the right option if the state were the last layer's"),
        PROBE: (False, "held-out probability of the right letter, by a linear probe of all items"),
        ZEROING: (True, "change of the right option's share when the state is zero"),
        PATCHING: (True, "change of the right option's share when the state is that of an item with another answer"),
    }
)
"""Map by name: whether its numbers are signed, and what they are."""


@dataclass(frozen=True, eq=False)
class Cell:
    """What one layer's state at one latent step looks like.

    Args:
        layer, step: of the state.
        tokens: the likeliest next tokens if the state were the last layer's, with their probabilities.
        patches: cosine of the state to the states at the image tokens, same layer, on the merged grid.
        attention: attention mass from the state's position to the image tokens at that layer, mean over heads, on the
            merged grid; None where the model's attention keeps no pattern.
    """

    layer: int
    step: int
    tokens: tuple[tuple[str, float], ...]
    patches: Float[Tensor, "row column"]
    attention: Float[Tensor, "row column"] | None = None


@dataclass(frozen=True, eq=False)
class Exploration:
    """A model and some items, with everything that a look at one of them needs.

    Args:
        model: with latents.
        items: with options.
    """

    model: PrismModel
    items: Sequence[Item]

    def __post_init__(self) -> None:
        checked_items(self.items)
        if self.model.hf.config.latent_entry == "none":
            raise SettingError(f"{self.model.name} has no latents", needed="a model that emits latents")

    @cached_property
    def clean(self) -> Run:
        """All items, without any edit."""
        return self.model.generate(self.items)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.model.hf.n_layers

    def n_steps(self, item: int) -> int:
        """How many latents the item's clean run has."""
        return int(self.clean.steps_taken[item])

    def shares(self, item: int, run: Run | None = None) -> dict[str, float]:
        """Probability of each option among the item's options, where the answer starts.

        Raises:
            ItemError: the item has no options, or the model wrote no answer.
        """
        run = self.clean if run is None else run
        own = self.items[item]
        row = run.rows_of([own])[0]
        logprobs = run.option_logprobs[row, : len(own.letters)]
        if not len(logprobs) or bool(logprobs.isnan().any()):
            raise ItemError(
                f"item {own.id!r} has no answer to compare", needed="options, and an answer that was written"
            )
        labels = [f"{letter} {text}" for letter, text in zip(own.letters, own.options, strict=True)]
        return dict(zip(labels, logprobs.softmax(0).tolist(), strict=True))

    def edited(self, item: int, edits: Sequence[Edit]) -> Run:
        """The item's run under edits; donors, means and spreads come from all items."""
        return self.model.edited(*edits).generate([self.items[item]], reference=self.clean)

    def pieces(self, item: int) -> list[tuple[str, str]]:
        """The item's sequence: ``(text, segment)`` a piece; image tokens are one piece, each latent is its own."""
        run = self.clean.unrolled
        decode = self.model.processor.tokenizer.decode
        out: list[tuple[str, str]] = []
        ids, segments = run.input_ids[item].tolist(), run.segments[item].tolist()
        for column, (token, number) in enumerate(zip(ids, segments, strict=True)):
            segment = Segment(number)
            if segment == Segment.PAD:
                continue
            if segment == Segment.IMAGE:
                text = f"image ×{segments.count(Segment.IMAGE)}"
                if out and out[-1][1] == "image":
                    continue
            elif segment == Segment.LATENT:
                text = f"z{int(run.steps[item, column]) + 1}"
            else:
                text = str(decode([token])).replace("\n", "⏎")
            out.append((text, segment.name.lower()))
        return out

    def answer_lens(self, item: int) -> Float[Tensor, "layer step"]:
        """Logit lens: share of the right option among the options, by their first tokens, at every layer and latent.

        Where two options begin with the same token their letters are compared instead.

        Raises:
            ItemError: the item's answer is not known.
        """
        right = list(self.shares(item)).index(self._right(item))
        logits = self._read_out(self._states(item, latent))
        return logits[..., self._first_tokens(self.items[item])].softmax(-1)[..., right]

    def answer_probe(self, item: int) -> Float[Tensor, "layer step"]:
        """Probability that a linear probe gives to the item's letter, fitted on other items, at every layer and latent.

        Raises:
            SettingError: the items are too few for the folds; ItemError: this one was left out, or has no answer.
        """
        self._right(item)
        own = self._probes[self._probes.item == self.items[item].id]
        if own.empty:
            raise ItemError(
                f"item {self.items[item].id!r} is not among the items that could be probed",
                needed="an answer that several items share, and as many latents as the others have",
            )
        out = torch.zeros(self.n_layers, self.n_steps(item))
        for role, depth, logprob in zip(own.role, own.depth, own.logprob, strict=True):
            if 1 <= depth <= self.n_layers:  # the embedding and the final norm are no layer's output
                out[depth - 1, self._step_of[role]] = math.exp(logprob)
        return out

    def effect(
        self, item: int, op: Operation | Structural | None = None, site: str = STATE, mode: str = "held"
    ) -> Float[Tensor, "layer step"]:
        """How much the right option's share changes when one layer's state at one latent is replaced.

        Args:
            item: which.
            op: what replaces it; `Zero` by default.
            site: a name with ``{layer}``.
            mode: ``"held"`` or ``"free"``.
        """
        label = self._right(item)
        before = self.shares(item)[label]
        out = torch.zeros(self.n_layers, self.n_steps(item))
        for layer in range(self.n_layers):
            for step in range(self.n_steps(item)):
                edit = Edit(op or Zero(), positions=latent[step], site=site.format(layer=layer), mode=mode)
                out[layer, step] = self.shares(item, self.edited(item, [edit]))[label] - before
        return out

    def map(self, item: int, name: str, mode: str) -> tuple[Float[Tensor, "layer step"], bool]:
        """One of `MAPS` by name, and whether its numbers are signed; `mode` is that of edits, where the map makes some.

        Raises:
            SettingError: there is no such map.
        """
        if name not in MAPS:
            raise SettingError(f"a map called {name!r}", needed="one of " + ", ".join(repr(one) for one in MAPS))
        make: Mapping[str, Callable[[], Float[Tensor, "layer step"]]] = {
            LENS: lambda: self.answer_lens(item),
            PROBE: lambda: self.answer_probe(item),
            ZEROING: lambda: self.effect(item, mode=mode),
            PATCHING: lambda: self.effect(item, Swap(donor="different-answer"), mode=mode),
        }
        return make[name](), MAPS[name][0]

    def picture(self, item: int) -> Image.Image:
        """The item's image, upright RGB."""
        own = self.items[item]
        return open_image(own.image, own.id)

    def cell(self, item: int, layer: int, step: int) -> Cell:
        """What the state of that layer at that latent looks like."""
        state = self._states(item, latent[step])[layer, 0]
        around = self._states(item, image)[layer]
        rows, columns = self.clean.unrolled.grids[item].tolist()
        near = F.cosine_similarity(state[None], around, dim=-1).reshape(rows, columns)
        shares, ids = self._read_out(state).softmax(-1).topk(TOP)
        decode = self.model.processor.tokenizer.decode
        tokens = tuple((str(decode([i])), share) for i, share in zip(ids.tolist(), shares.tolist(), strict=True))
        return Cell(layer, step, tokens, near, self._attention(item, layer, step))

    @cached_property
    def _step_of(self) -> dict[str, int]:
        """Text of each latent's role -> its step."""
        return {str(latent[step]): step for step in range(int(self.clean.steps_taken.max()))}

    @cached_property
    def _probes(self) -> pd.DataFrame:
        """Held-out probes of the letter at every latent and depth, one row an item and place."""
        return decodability(
            self.model, self.items, roles=[latent[step] for step in self._step_of.values()],
            n_permutations=0, n_controls=0, on_missing="drop", on_rare="drop",
        ).rows  # fmt: skip

    def _attention(self, item: int, layer: int, step: int) -> Float[Tensor, "row column"] | None:
        """Attention from a latent to the image tokens at a layer, mean over heads; None without patterns."""
        name = f"blocks.{layer}.attn.hook_pattern"
        try:
            _, cache = self.model.run_with_cache([self.items[item]], name, positions=latent[step], run=self.clean)
        except SiteError:
            return None
        seen = image.mask(cache.unrolled)[0]
        return cache.flat(name)[0].mean(0)[seen].reshape(*self.clean.unrolled.grids[item].tolist())

    def _right(self, item: int) -> str:
        """The label of the right option."""
        own = self.items[item]
        if own.answer is None:
            raise ItemError(f"item {own.id!r} has no known answer", needed="an item with its answer's letter")
        return f"{own.answer} {own.content}"

    def _first_tokens(self, own: Item) -> list[int]:
        """The token that each option begins with as a word of its own, or its letter where these do not differ."""
        encode = self.model.processor.tokenizer.encode
        words = [encode(f" {text}", add_special_tokens=False)[0] for text in own.options]
        distinct = len(set(words)) == len(words)
        return words if distinct else [ids[0] for ids in letter_ids(self.model.processor, "".join(own.letters))]

    def _states(self, item: int, role: Role) -> Float[Tensor, "layer pos d_model"]:
        """The residual stream after every layer at the item's positions of a role."""
        one = [self.items[item]]
        _, cache = self.model.run_with_cache(one, "resid_post", positions=role, run=self.clean, return_type=None)
        return torch.stack([cache["resid_post", layer][0] for layer in range(self.n_layers)])

    @torch.no_grad()
    def _read_out(self, states: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """Logits if the states were the last layer's: final norm, then the unembedding."""
        return self.model.hf.lm_head(self.model.hf.model.language_model.norm(states)).float()
