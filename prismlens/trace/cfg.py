"""A model's sizes under TransformerLens' names, read off its configuration; knows no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prismlens.models.config import LVRConfig, Qwen3LVRConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants, as TransformerLens calls them; those of the vision tower carry ``vision``.

    Args:
        n_layers, n_heads, n_key_value_heads, d_model, d_head, d_mlp, d_vocab: of the language model; ``d_vocab`` counts
            the rows of the embedding.
        n_ctx: the longest sequence that it was made for.
        eps: of its norms.
        act_fn: of its MLPs, applied to the gate.
        tied_embeddings: the unembedding is the embedding.
        mrope_section: how many frequency pairs turn with the temporal, the vertical and the horizontal position.
        n_vision_layers, n_vision_heads, d_vision, d_vision_mlp: of the vision tower.
        patch_size: a patch's side in pixels.
        merge_size: a merged image token is so many patches wide and high.
        latent_head: the name of the LVR head, ``"none"`` without one.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    eps: float
    act_fn: str
    tied_embeddings: bool
    mrope_section: tuple[int, ...]
    n_vision_layers: int
    n_vision_heads: int
    d_vision: int
    d_vision_mlp: int
    patch_size: int
    merge_size: int
    latent_head: str

    @classmethod
    def of(cls, config: LVRConfig | Qwen3LVRConfig) -> ModelConfig:
        """The sizes of a configuration of any size."""
        text, vision = _any(config.text), _any(config.vision_config)
        rope: dict[str, Any] = text.rope_parameters or {}
        return cls(
            n_layers=text.num_hidden_layers,
            n_heads=text.num_attention_heads,
            n_key_value_heads=text.num_key_value_heads or text.num_attention_heads,
            d_model=text.hidden_size,
            d_head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            d_mlp=text.intermediate_size,
            d_vocab=text.vocab_size,
            n_ctx=text.max_position_embeddings,
            eps=text.rms_norm_eps,
            act_fn=text.hidden_act,
            tied_embeddings=bool(config.tie_word_embeddings),
            mrope_section=tuple(rope.get("mrope_section", ())),
            n_vision_layers=vision.depth,
            n_vision_heads=vision.num_heads,
            d_vision=vision.hidden_size,
            d_vision_mlp=vision.intermediate_size,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            latent_head=config.head,
        )


def _any(value: object) -> Any:
    return value
