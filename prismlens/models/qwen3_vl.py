"""The latent-reasoning Qwen3-VL, whose tower also adds to the stream after the first layers; knows no other model."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from prismlens.errors import SettingError
from prismlens.models.config import Qwen3LVRConfig
from prismlens.models.latent import LatentModel

_DEEP = (
    "Qwen3-VL's tower reaches the language model at several places: at the embeddings and, through mergers of their"
    " own, after each of the first layers (deepstack)"
)

_WINDOWS = (
    "the order of the rows of Qwen3-VL's tower has not been compared with the processor's, as it has for the windows of"
    " Qwen2.5-VL's"
)


class Qwen3LVRForConditionalGeneration(LatentModel, Qwen3VLForConditionalGeneration):
    """`Qwen3VLForConditionalGeneration` whose inputs may be latents; see `LatentModel`.

    At image positions ``resid_post[l] + deep_features[l] = resid_pre[l + 1]`` for the first ``len(deep_features)``
    layers, as many as the tower's config names in ``deepstack_visual_indexes``.
    """

    config_class = Qwen3LVRConfig
    config: Qwen3LVRConfig
    refused = MappingProxyType(
        {
            "hook_vision_out": f"{_DEEP}, so no one tensor is what it gives, and a change of one of them is partial",
            "hook_vision_embed": _WINDOWS,
            "vision.blocks": _WINDOWS,
            "hook_vision_proj_in": f"{_DEEP}, so there is no one projection whose input this could be",
            "hook_vision_proj_out": f"{_DEEP}, so there is no one projection whose output this could be",
        }
    )
    notes = MappingProxyType(
        {
            "attn.hook_q": "as projected, before the norm over each head that precedes the rotary embedding",
            "attn.hook_k": "as projected, before the norm over each head that precedes the rotary embedding",
            "hook_resid_post": "the block's own output: in the first layers the tower's features are added to it at"
            " image positions before the next block, at whose hook_resid_pre the sum is",
        }
    )

    @property
    def n_deep(self) -> int:
        """As many as the tower's config names."""
        return len(cast(Any, self.config.vision_config).deepstack_visual_indexes)

    def vision_inputs(self, pixel_values: Tensor | None, grid_thw: Int[Tensor, "image 3"] | None) -> dict[str, Any]:
        """``image_features``, and ``deep_features``: for each of the first layers what is added after it."""
        vision = self.vision(pixel_values, grid_thw)
        if vision is None:
            return {"image_features": None}
        deep = tuple(torch.cat(tuple(of_images)) for of_images in vision.deepstack_features)
        return {"image_features": torch.cat(tuple(vision.pooler_output)), "deep_features": deep}

    def deep_inputs(
        self, is_image: Bool[Tensor, "batch query"], image_features: Tensor | None, deep_features: Sequence[Tensor]
    ) -> dict[str, Any]:
        """The features and where they are added; all of them wherever there are images."""
        wanted = self.n_deep if image_features is not None else 0
        if len(deep_features) != wanted:
            raise SettingError(
                f"{len(deep_features)} deep features with {'' if wanted else 'no '}image features",
                needed=str(wanted),
                cause="only the merger's outputs were kept, without what the tower adds after the first layers",
                fix="pass on all that vision_inputs returns",
            )
        return {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(deep_features)} if wanted else {}
