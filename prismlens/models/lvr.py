"""The latent-reasoning model: Qwen2.5-VL with one forward, `step`, that takes tokens, pixels and latents together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import Cache

from prismlens.errors import CheckpointError
from prismlens.models.config import LVRConfig
from prismlens.models.heads import HEADS
from prismlens.models.visibility import LayerMasks, Rule, additive, pick_layer_mask


@dataclass(frozen=True, eq=False)
class StepOutput:
    """What one forward returns.

    Args:
        hidden: final-norm states of its columns.
        logits: of the columns that were asked for, from `hidden`.
        latent: what would be fed back from each column: `hidden` past the LVR head, or `hidden` itself without one.
    """

    hidden: Float[Tensor, "batch query d_model"]
    logits: Float[Tensor, "batch kept d_vocab"]
    latent: Float[Tensor, "batch query d_model"]


class HookPoint(nn.Module):
    """The identity, with a name: a place where an activation can be read and replaced."""

    def forward(self, value: Tensor) -> Tensor:
        """Return `value` itself."""
        return value


class LVRForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` whose inputs may be latents, each of which passes `hook_latent`.

    Where the configuration says so it has an LVR head (`lvr_head`, read at `hook_latent_head`) and a learned end vector
    (`lvr_latent_end_emb`); the names are those of released weights.
    """

    config_class = LVRConfig
    config: LVRConfig
    lvr_latent_end_emb: nn.Parameter | None

    def __init__(self, config: LVRConfig) -> None:
        super().__init__(config)
        config.check_latents()
        if self.config.text.use_sliding_window:
            raise CheckpointError(
                "the config sets use_sliding_window", needed="full attention", cause="sliding windows are not supported"
            )
        self.hook_latent = HookPoint()
        head = HEADS[config.head]
        if head is not None:
            self.lvr_head = head(config.text)
            self.hook_latent_head = HookPoint()
        start = torch.randn(config.text.hidden_size) if config.latent_end_token else None
        vector = None if start is None else nn.Parameter(start * sqrt(len(start)) / start.norm())
        self.register_parameter("lvr_latent_end_emb", vector)
        for index, layer in enumerate(self.model.language_model.layers):
            layer.register_forward_pre_hook(partial(pick_layer_mask, index), with_kwargs=True)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.text.num_hidden_layers

    @property
    def has_head(self) -> bool:
        """Whether states pass an LVR head before they are fed back."""
        return HEADS[self.config.head] is not None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The visibility rules of the config."""
        return tuple(Rule.from_config(entry) for entry in self.config.visibility)

    def step(
        self,
        input_ids: Int[Tensor, "batch query"],
        position_ids: Int[Tensor, "3 batch query"],
        attention_mask: LayerMasks,
        *,
        past_key_values: Cache | None = None,
        image_features: Float[Tensor, "image_token d_model"] | None = None,
        latents: Float[Tensor, "batch slot d_model"] | None = None,
        latent_index: Int[Tensor, "batch query"] | None = None,
        keep: slice = slice(None),
    ) -> StepOutput:
        """One forward over new columns.

        Args:
            input_ids: token ids; image placeholders and latent slots are overwritten below.
            position_ids: M-RoPE ids of the columns.
            attention_mask: one mask a layer, from `visibility.masks`.
            past_key_values: the cache to read and extend, or None to run without one.
            image_features: merger outputs of all images, in order, one row an image token.
            latents: vectors to feed; they pass `hook_latent` first.
            latent_index: for every column the index into `latents`, -1 where the column is a token.
            keep: the columns whose logits are wanted.
        """
        embeds = self.model.language_model.embed_tokens(input_ids)
        if self.lvr_latent_end_emb is not None:
            # Training puts the vector in the place of this token, whose own embedding is never used.
            at_end = (input_ids == self.config.lvr_latent_end_id)[..., None]
            embeds = torch.where(at_end, self.lvr_latent_end_emb.to(embeds.dtype), embeds)
        if image_features is not None:
            image = (input_ids == self.config.image_token_id)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(image, image_features.to(embeds.dtype))
        if latents is not None and latent_index is not None:
            fed = self.hook_latent(latents)
            index = latent_index.clamp(min=0)[..., None].expand(-1, -1, fed.shape[-1])
            embeds = torch.where(latent_index[..., None] >= 0, fed.gather(1, index).to(embeds.dtype), embeds)
        hidden = self.model.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask=self._as_backend_wants(attention_mask, embeds.dtype),
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        ).last_hidden_state
        return StepOutput(hidden, self.lm_head(hidden[:, keep]), self.latent_of(hidden))

    def latent_of(self, hidden: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query d_model"]:
        """What final-norm states become when they are fed back; the states themselves without an LVR head."""
        return self.hook_latent_head(self.lvr_head(hidden)) if self.has_head else hidden

    def image_features(self, pixel_values: Tensor | None, grid_thw: Int[Tensor, "image 3"] | None) -> Tensor | None:
        """Merger outputs of all images, ``[image_token, d_model]`` in row-major order, or None without images."""
        if pixel_values is None or grid_thw is None:
            return None
        vision: Any = self.model.get_image_features(cast(Any, pixel_values), cast(Any, grid_thw))
        return torch.cat(tuple(vision.pooler_output))

    def rope_positions(
        self,
        input_ids: Int[Tensor, "batch pos"],
        valid: Tensor,
        grid_thw: Int[Tensor, "image 3"] | None,
    ) -> Int[Tensor, "3 batch pos"]:
        """M-RoPE ids of left-padded prompts; 0 at padding. Leaves no `rope_deltas` behind on the module."""
        types = (input_ids == self.config.image_token_id).int()
        index: Any = self.model.get_rope_index
        return index(input_ids, mm_token_type_ids=types, image_grid_thw=grid_thw, attention_mask=valid.int())[0]

    def _as_backend_wants(self, attention_mask: LayerMasks, dtype: torch.dtype) -> dict[str, Any]:
        """The per-layer masks in the form that the attention implementation takes."""
        kind = self.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise CheckpointError(
                f"attention implementation {kind!r}",
                needed='"sdpa" or "eager": latent positions need explicit masks',
                fix='load with attn_implementation="sdpa"',
            )
        if kind == "eager":
            attention_mask = LayerMasks(_shared_additive(attention_mask, dtype))
        return {"full_attention": attention_mask}


def _shared_additive(boolean: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Additive masks, layers that share a boolean mask share the additive one."""
    made = {id(mask): additive(mask, dtype) for mask in boolean}
    return [made[id(mask)] for mask in boolean]
