"""What may stand between a state and the latent it becomes: LVR heads, with released weight names; knows no loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextConfig, Qwen3VLTextConfig
from transformers.activations import ACT2FN

TextConfig: TypeAlias = Qwen2_5_VLTextConfig | Qwen3VLTextConfig
"""A language model's configuration, of any architecture that is served."""
NONE = "none"
EPSILON = 1e-6


class SimpleHead(nn.Module):
    """LayerNorm, then two linear layers of the model's width with GELU between.

    Args:
        text: the language model's configuration; its width is used.
    """

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        width = text.hidden_size
        self.ln_q = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The vectors to feed back."""
        return self.mlp(self.ln_q(states))


class GatedHead(nn.Module):
    """The gated MLP of a decoder layer, with biases and without a norm: ``down(act(gate(x)) * up(x))``.

    Args:
        text: the language model's configuration; its width, inner width and activation (SiLU) are used.
    """

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        width, inner = text.hidden_size, text.intermediate_size
        self.gate_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)
        self.act_fn = ACT2FN[text.hidden_act]

    def forward(self, states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The vectors to feed back."""
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


HEADS: Mapping[str, Callable[[TextConfig], nn.Module] | None] = MappingProxyType(
    {NONE: None, "simple": SimpleHead, "gated": GatedHead}
)
"""Heads by name; without one, states are fed back as they are."""

RELEASED_TYPES: Mapping[str, str] = MappingProxyType({"simple": "simple", "glu": "gated"})
"""What a released configuration calls a head in ``lvr_head_type``, and its name here."""
