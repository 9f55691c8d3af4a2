"""What makes a model of transformers think in latents: one forward, `step`, over tokens, images and latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from prismlens.errors import CheckpointError, SettingError, SiteError
from prismlens.models.config import LVRConfig, Qwen3LVRConfig
from prismlens.models.heads import HEADS
from prismlens.models.hook_point import HookPoint
from prismlens.models.hooked_attention import add_hook_points
from prismlens.models.resume import Resume, run_from
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


class LatentModel(PreTrainedModel):
    """Mixed in before a stock class of transformers: its inputs may be latents, each of which passes `hook_latent`.

    Where the configuration says so it has an LVR head (`lvr_head`, read at `hook_latent_head`) and a learned end vector
    (`lvr_latent_end_emb`); the names are those of released weights.

    The stock class has its decoder at `decoder_path` (embeddings, a list of layers, a final norm; a layer takes its
    states first and its mask as a keyword), its vision tower at `tower_path`, and `lm_head`. What else differs between
    architectures is overridden: `vision_inputs` and `deep_inputs`.

    Attributes:
        decoder_path, tower_path: of the modules.
        refused: sites, or all below a part of a name, that have no faithful meaning in this architecture -> why.
        notes: sites that are served and differ in some way from other architectures' -> how.
    """

    config_class = PreTrainedConfig
    config: LVRConfig | Qwen3LVRConfig
    lm_head: nn.Linear
    lvr_latent_end_emb: nn.Parameter | None
    decoder_path: ClassVar[str] = "model.language_model"
    tower_path: ClassVar[str] = "model.visual"
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({})
    notes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, config: LVRConfig | Qwen3LVRConfig) -> None:
        super().__init__(config)
        config.check_latents()
        _refuse_sliding(config)
        self.hook_latent = HookPoint()
        self.hook_embed = HookPoint()
        head = HEADS[config.head]
        if head is not None:
            self.lvr_head = head(config.text)
            self.hook_latent_head = HookPoint()
        start = torch.randn(config.text.hidden_size) if config.latent_end_token else None
        vector = None if start is None else nn.Parameter(start * sqrt(len(start)) / start.norm())
        self.register_parameter("lvr_latent_end_emb", vector)
        for index, layer in enumerate(self.decoder.layers):
            layer.register_forward_pre_hook(partial(pick_layer_mask, index), with_kwargs=True)
            add_hook_points(layer.self_attn)

    @property
    def decoder(self) -> Any:
        """The language model without its output layer."""
        return self.get_submodule(self.decoder_path)

    @property
    def tower(self) -> Any:
        """The vision tower, merger included."""
        return self.get_submodule(self.tower_path)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.text.num_hidden_layers

    @property
    def n_vision_layers(self) -> int:
        """Number of the vision tower's blocks."""
        return cast(Any, self.config.vision_config).depth

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
        deep_features: Sequence[Float[Tensor, "image_token d_model"]] = (),
        latents: Float[Tensor, "batch slot d_model"] | None = None,
        latent_index: Int[Tensor, "batch query"] | None = None,
        keep: slice = slice(None),
        resume: Resume | None = None,
        image_mask: Bool[Tensor, "batch query"] | None = None,
    ) -> StepOutput:
        """One forward over new columns.

        Args:
            input_ids: token ids; image placeholders and latent slots are overwritten below.
            position_ids: M-RoPE ids of the columns.
            attention_mask: one mask a layer, from `visibility.masks`.
            past_key_values: the cache to read and extend, or None to run without one.
            image_features: merger outputs of all images, in order, one row an image token.
            deep_features: what the tower adds to the stream after the first layers, where it does; see `vision_inputs`.
            latents: vectors to feed; they pass `hook_latent` first.
            latent_index: for every column the index into `latents`, -1 where the column is a token.
            keep: the columns whose logits are wanted.
            resume: states to go on from, instead of the embeddings of tokens, images and latents.
            image_mask: which columns are image tokens; by default every placeholder. A model may have written the
                placeholder itself, which is a token as any other then.
        """
        if resume is not None:
            return self._resumed(resume, position_ids, attention_mask, past_key_values, keep)
        decoder = self.decoder
        is_image = input_ids == self.config.image_token_id if image_mask is None else image_mask
        embeds = decoder.embed_tokens(input_ids)
        if self.lvr_latent_end_emb is not None:
            # Training puts the vector in the place of this token, whose own embedding is never used.
            at_end = (input_ids == self.config.lvr_latent_end_id)[..., None]
            embeds = torch.where(at_end, self.lvr_latent_end_emb.to(embeds.dtype), embeds)
        if image_features is not None:
            embeds = embeds.masked_scatter(is_image[..., None].expand_as(embeds), image_features.to(embeds.dtype))
        if latents is not None and latent_index is not None:
            fed = self.hook_latent(latents)
            index = latent_index.clamp(min=0)[..., None].expand(-1, -1, fed.shape[-1])
            embeds = torch.where(latent_index[..., None] >= 0, fed.gather(1, index).to(embeds.dtype), embeds)
        own_masks = self._as_backend_wants(attention_mask, embeds.dtype)
        hidden = decoder(
            inputs_embeds=self.hook_embed(embeds),
            position_ids=position_ids,
            attention_mask=own_masks[0],  # four axes: transformers takes it as it is, and makes none of its own
            layer_masks=own_masks,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **self.deep_inputs(is_image, image_features, deep_features),
        ).last_hidden_state
        return StepOutput(hidden, self.lm_head(hidden[:, keep]), self.latent_of(hidden))

    def _resumed(
        self,
        resume: Resume,
        position_ids: Int[Tensor, "3 batch query"],
        attention_mask: LayerMasks,
        past_key_values: Cache | None,
        keep: slice,
    ) -> StepOutput:
        """`step` from the middle of the decoder."""
        if resume.layer < self.n_deep:
            raise SettingError(
                f"a forward that goes on from layer {resume.layer}",
                needed=f"layer {self.n_deep} or a later one",
                cause="the tower adds to the stream after each of the layers before it",
                fix="run the whole forward",
            )
        masks = self._as_backend_wants(attention_mask, resume.hidden.dtype)
        hidden = run_from(self.decoder, resume, position_ids, masks, past_key_values)
        return StepOutput(hidden, self.lm_head(hidden[:, keep]), self.latent_of(hidden))

    @property
    def n_deep(self) -> int:
        """How many of the first layers the tower adds to after."""
        return 0

    def latent_of(self, hidden: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query d_model"]:
        """What final-norm states become when they are fed back; the states themselves without an LVR head."""
        return self.hook_latent_head(self.lvr_head(hidden)) if self.has_head else hidden

    def image_features(self, pixel_values: Tensor | None, grid_thw: Int[Tensor, "image 3"] | None) -> Tensor | None:
        """Merger outputs of all images, ``[image_token, d_model]`` in row-major order, or None without images."""
        return self.vision_inputs(pixel_values, grid_thw)["image_features"]

    def vision_inputs(self, pixel_values: Tensor | None, grid_thw: Int[Tensor, "image 3"] | None) -> dict[str, Any]:
        """The keyword arguments of `step` that bring the images in: ``image_features``, and what else there is."""
        vision = self.vision(pixel_values, grid_thw)
        return {"image_features": None if vision is None else torch.cat(tuple(vision.pooler_output))}

    def vision(self, pixel_values: Tensor | None, grid_thw: Int[Tensor, "image 3"] | None) -> Any:
        """What the tower gives, as transformers returns it; None without images."""
        if pixel_values is None or grid_thw is None:
            return None
        return cast(Any, self).model.get_image_features(pixel_values, grid_thw)

    def deep_inputs(
        self, is_image: Bool[Tensor, "batch query"], image_features: Tensor | None, deep_features: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Keyword arguments of the decoder that bring in `deep_features`; an architecture without them refuses them."""
        if len(deep_features):
            raise SettingError(
                f"{len(deep_features)} deep features for {type(self).__name__}",
                needed="none",
                cause="its tower reaches the decoder at the embeddings only",
                fix="pass on what vision_inputs returns",
            )
        return {}

    def rope_positions(
        self,
        input_ids: Int[Tensor, "batch pos"],
        valid: Tensor,
        grid_thw: Int[Tensor, "image 3"] | None,
    ) -> Int[Tensor, "3 batch pos"]:
        """M-RoPE ids of left-padded prompts; 0 at padding. Leaves no `rope_deltas` behind on the module."""
        types = (input_ids == self.config.image_token_id).int()
        index: Any = cast(Any, self).model.get_rope_index
        return index(input_ids, mm_token_type_ids=types, image_grid_thw=grid_thw, attention_mask=valid.int())[0]

    def refuses(self, name: str) -> bool:
        """Whether a site has no faithful meaning in this architecture."""
        return any(name == part or name.startswith(f"{part}.") for part in self.refused)

    def refuse_site(self, name: str) -> None:
        """Raise SiteError, with the reason, where a site has no faithful meaning in this architecture."""
        known = next((part for part in self.refused if name == part or name.startswith(f"{part}.")), None)
        if known is not None:
            raise SiteError(
                f"{name!r} was asked for on a {type(self).__name__}",
                needed="a site that means the same in this architecture",
                cause=self.refused[known],
            )

    def _as_backend_wants(self, attention_mask: LayerMasks, dtype: torch.dtype) -> LayerMasks:
        """The per-layer masks in the form that the attention implementation takes."""
        kind = self.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise CheckpointError(
                f"attention implementation {kind!r}",
                needed='"sdpa" or "eager": latent positions need explicit masks',
                fix='load with attn_implementation="sdpa"',
            )
        return LayerMasks(_shared_additive(attention_mask, dtype)) if kind == "eager" else attention_mask


def _refuse_sliding(config: LVRConfig | Qwen3LVRConfig) -> None:
    """Every layer has to attend to everything before it."""
    kinds = set(getattr(config.text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(config.text, "use_sliding_window", False) or kinds:
        raise CheckpointError(
            "the config sets use_sliding_window"
            if not kinds
            else f"the config has layers of {', '.join(sorted(kinds))}",
            needed="full attention",
            cause="sliding windows are not supported",
        )


def _shared_additive(boolean: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Additive masks, layers that share a boolean mask share the additive one."""
    made = {id(mask): additive(mask, dtype) for mask in boolean}
    return [made[id(mask)] for mask in boolean]
