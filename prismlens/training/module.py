"""The module that is optimised: the model, its throw-away heads, and the sums that every loss is made of."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.training.batch import Batch
from prismlens.training.examples import IGNORE
from prismlens.training.inputs import PASSES
from prismlens.training.objective import (
    DISTANCES,
    diversity,
    facts_loss,
    part_weights,
    row_weights,
    switch_loss,
    token_losses,
)
from prismlens.training.passes import Pass
from prismlens.training.scenes import FACTS
from prismlens.training.settings import TrainSettings
from prismlens.training.variants import Variant

TERMS = ("text", "align", "diversity", "switch", "facts", "words")
"""The terms of the loss, in the order of the vectors that carry their sums, counts and weights."""
FACTS_LAYER, WORDS_LAYER = 2, 3
"""Throw-away heads read the residual stream after so many layers: what is known of named objects, and the answer's word
(the keys and values of the last layer are made from that state)."""


class TrainingModule(nn.Module):
    """A model with what its training needs.

    Args:
        model: whose tower is frozen; all other parameters that require gradients are trained.
        variant: how.
        settings: numbers and protocol.
    """

    def __init__(self, model: LVRForConditionalGeneration, variant: Variant, settings: TrainSettings) -> None:
        super().__init__()
        self.lm, self.variant, self.settings = model, variant, settings
        text = model.config.text
        self.facts = nn.Linear(text.hidden_size, sum(FACTS)) if settings.facts else None
        wants_words = any(phase.words for phase in variant.phases)
        self.words = nn.Linear(text.hidden_size, text.vocab_size) if wants_words else None

    def forward(self, batch: Batch) -> Float[Tensor, " term"]:
        """The sum of every term over the batch; `counts` gives what to divide by, and `weights` the weights."""
        phase = self.variant.phases[batch.phase]
        features = self._features(batch)
        targets = features[batch.slot_feature.clamp(min=0)] * batch.slots[..., None]
        layers = tuple(n for n, head in ((FACTS_LAYER, self.facts), (WORDS_LAYER, self.words)) if head is not None)
        device = features.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.bf16):
            out = PASSES[phase.inputs](self.lm, batch, features, targets, self.variant.noise, layers)
        zero = out.states.new_zeros((), dtype=torch.float32)
        terms = {
            "text": self._text(batch, out),
            "align": self._align(batch, out, targets) if batch.slot_feature.shape[1] else zero,
            "diversity": self._diversity(batch, out) if len(batch.free) else zero,
            "switch": self._switch(batch, out) if self.variant.switch else zero,
            "facts": self._facts(batch, out) if self.facts is not None else zero,
            "words": self._words(batch, out) if self.words is not None and phase.words else zero,
        }
        return torch.stack([terms[name] for name in TERMS])

    def weights(self, phase: int) -> tuple[float, ...]:
        """The weight of every term at a phase."""
        at = self.variant.phases[phase]
        own = {
            "text": 1.0, "align": self.settings.lam * at.lam, "diversity": self.variant.diversity,
            "switch": self.variant.switch, "facts": self.settings.facts, "words": at.words,
        }  # fmt: skip
        return tuple(own[name] for name in TERMS)

    def counts(self, batch: Batch) -> Float[Tensor, " term"]:
        """What each term's sum is a sum over: labelled tokens, slots (packs, where the published weights are used),
        examples with free tokens, named objects, and slots with a word."""
        packs, protocol = len(batch.seeds), self.settings.protocol
        text = int((batch.labels != IGNORE).sum()) if protocol.text_mean == "tokens" else packs
        slots = int(batch.slots.sum()) + (len(batch.ends) if self.variant.end_vector else 0)
        align = slots if protocol.align_mean == "slots" else packs
        own = {
            "text": text, "align": align, "diversity": len(batch.free),
            "switch": len(batch.ends) if self.variant.end_vector else int(batch.slots.sum()),
            "facts": int((batch.facts[..., 0] != IGNORE).sum()), "words": int((batch.words != IGNORE).sum()),
        }  # fmt: skip
        return torch.tensor([float(own[name]) for name in TERMS])

    def _features(self, batch: Batch) -> Float[Tensor, "image_token d_model"]:
        """Cached merger outputs, or the frozen tower's; without gradients either way."""
        if batch.image_features is not None:
            return batch.image_features
        with torch.no_grad():
            features = self.lm.image_features(batch.pixels, batch.grid_thw)
        assert features is not None
        return features

    def _text(self, batch: Batch, out: Pass) -> Tensor:
        asked = batch.labels != IGNORE
        losses = token_losses(self._logits(out.states[asked]), batch.labels[asked])
        if self.settings.protocol.text_mean == "pack":
            losses = losses * row_weights(asked)[asked]
        return losses.sum()

    def _logits(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """In the precision of the head's weights, outside autocast: bfloat16 logits are coarse."""
        head = self.lm.lm_head
        return head(states.to(head.weight.dtype)).float()

    def _align(self, batch: Batch, out: Pass, targets: Tensor) -> Tensor:
        valid = batch.slots
        losses = DISTANCES[self.variant.align](out.sources[valid], targets[valid])
        if self.settings.protocol.align_mean == "published":
            several = len(self.variant.latent_stages) > 1
            weights = part_weights(batch.slot_part, valid) if several else row_weights(valid)
            losses = losses * weights[valid]
        return losses.sum() + (self._to_end_vector(batch, out).sum() if self.variant.end_vector else 0)

    def _to_end_vector(self, batch: Batch, out: Pass) -> Tensor:
        """The distance of what would be fed after the last slot of every stage to the learned end vector."""
        states = out.latent[batch.ends[:, 0], batch.ends[:, 1]]
        return DISTANCES[self.variant.align](states, cast(Tensor, self.lm.lvr_latent_end_emb).expand_as(states))

    def _switch(self, batch: Batch, out: Pass) -> Tensor:
        if self.variant.end_vector:
            return self._to_end_vector(batch, out).sum()
        run = batch.unrolled
        slots = run.steps >= 0
        leaving = torch.zeros_like(slots)
        leaving[batch.ends[:, 0], batch.ends[:, 1]] = True
        logits = self._logits(out.states[slots])[:, self.lm.config.lvr_latent_end_id]
        return switch_loss(logits, leaving[slots]).sum()

    def _diversity(self, batch: Batch, out: Pass) -> Tensor:
        return diversity(out.states[batch.free[..., 0], batch.free[..., 1]]).sum()

    def _facts(self, batch: Batch, out: Pass) -> Tensor:
        assert self.facts is not None
        named = batch.facts[..., 0] != IGNORE
        return facts_loss(self.facts(out.after[FACTS_LAYER][named].float()), batch.facts[named], FACTS)

    def _words(self, batch: Batch, out: Pass) -> Tensor:
        assert self.words is not None
        known = batch.words != IGNORE
        slots = batch.unrolled.steps >= 0
        states = out.after[WORDS_LAYER][slots][known[batch.slots]]
        return token_losses(self.words(states.float()), batch.words[known]).sum()
