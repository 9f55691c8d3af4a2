"""From a base to the model that a variant trains: control tokens, latent settings, weights copied; trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from prismlens.errors import TrainingError
from prismlens.models.config import LVRConfig
from prismlens.models.latent import LatentModel
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor, token_id
from prismlens.models.tokens import BLOCK_TOKENS, LATENT_TOKENS
from prismlens.training.examples import Slotting
from prismlens.training.markers import MARKERS, Opening, openings, stage_config
from prismlens.training.protocol import Protocol
from prismlens.training.variants import Variant


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model ready to be trained.

    Args:
        model: with the variant's configuration; its tower is frozen.
        processor: the one that is saved with the model; it adds the start marker.
        plain: the one that training encodes with; it adds none.
        slotting: how boxes become slots in training.
        added: control tokens that the tokenizer lacked.
    """

    model: LVRForConditionalGeneration
    processor: LVRProcessor
    plain: LVRProcessor
    slotting: Slotting
    added: tuple[str, ...]


def prepare(
    base: LatentModel,
    processor: LVRProcessor,
    variant: Variant,
    *,
    latent_steps: int,
    protocol: Protocol,
    emitted: bool = False,
) -> Prepared:
    """Copy a base into a model of the variant.

    Args:
        base: any Qwen2.5-VL; its own weights are not changed.
        processor: of the base; its tokenizer is given the control tokens that it lacks.
        variant: what is to be trained.
        latent_steps: K, the budget of the latent block.
        protocol: decides latents a stage and whether markers are forced.
        emitted: the model writes the block's start marker itself, instead of finding it at the end of its prompt.

    Raises:
        TrainingError: a base of another architecture.
    """
    base, tokenizer = _trainable(base), processor.tokenizer
    known: Any = tokenizer.get_vocab()
    added = tuple(token for token in BLOCK_TOKENS.values() if token not in known) if variant.stages else ()
    if added:
        tokenizer.add_tokens(list(added), special_tokens=True)
    opened = openings(variant.stages, tokenizer)
    latents = protocol.latents(len(opened), latent_steps)
    entry = "none" if not opened else "emitted" if emitted else "forced"
    config = _config(base.config, processor, variant, opened, latents, entry, forced=protocol.markers == "forced")
    # Not `.to(dtype)`, which would round the rotary frequencies of a half-precision base as well.
    model = cast(Any, LVRForConditionalGeneration)._from_config(config, dtype=base.dtype)
    _copy(base, model)
    model.model.visual.requires_grad_(False)
    slotting = Slotting(variant.latent_stages, opened, latents if protocol.slots == "budget" else None)
    pixels = processor.image_processor
    start = MARKERS[variant.stages[0].name][0] if entry == "forced" else False
    return Prepared(
        model,
        LVRProcessor(pixels, tokenizer, start=start),
        LVRProcessor(pixels, tokenizer, start=False),
        slotting,
        added,
    )


def _trainable(base: LatentModel) -> LVRForConditionalGeneration:
    """The base itself, where its architecture can be trained.

    Raises:
        TrainingError: another architecture than Qwen2.5-VL.
    """
    if not isinstance(base, LVRForConditionalGeneration):
        raise TrainingError(
            f"a base of the class {type(base).__name__}",
            needed="a Qwen2.5-VL",
            cause="training keeps the merger's outputs of each image, and another tower may give more than those",
            fix="train with the architecture's own code; the finished folder can be analysed here",
        )
    return base


def _config(
    base: LVRConfig,
    processor: LVRProcessor,
    variant: Variant,
    opened: tuple[Opening, ...],
    latents: tuple[int, ...],
    entry: str,
    *,
    forced: bool,
) -> LVRConfig:
    """The base's configuration with the variant's latent settings."""
    values = base.to_dict()
    size = max(values["text_config"]["vocab_size"], len(processor.tokenizer))
    values["text_config"]["vocab_size"] = size
    several = len(opened) > 1
    values |= dict.fromkeys(BLOCK_TOKENS)
    values |= {
        "latent_entry": entry,
        "latent_exit": "end_vector" if variant.end_vector else "fixed",
        "latent_end_token": variant.end_vector,
        "lvr_head": variant.head,
        "latent_steps": max(latents, default=base.latent_steps),
        "latent_close": list(opened[-1].close) if forced and len(opened) == 1 else [],
        "latent_stages": stage_config(variant.latent_stages, opened, latents, forced=forced) if several else [],
        "visibility": [dict(rule) for rule in variant.visibility],
    }
    if opened:
        tokens = BLOCK_TOKENS if several else LATENT_TOKENS
        values |= {field: token_id(processor.tokenizer, token) for field, token in tokens.items()}
    return LVRConfig(**values)


@torch.no_grad()
def _copy(base: LVRForConditionalGeneration, model: LVRForConditionalGeneration) -> None:
    """The base's weights; rows of tokens that the base did not have begin at the mean of its rows."""
    own, theirs = model.state_dict(), base.state_dict()
    for name, value in theirs.items():
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
        elif name in own:
            rows = len(value)
            own[name][:rows].copy_(value)
            own[name][rows:].copy_(value.mean(0, keepdim=True).expand(len(own[name]) - rows, -1))
    model.tie_weights()
