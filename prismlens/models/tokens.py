"""The control tokens of latent blocks and the configuration's fields that hold their ids; knows no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

START, SLOT, LATENT_END, END = "<|lvr_start|>", "<|lvr|>", "<|lvr_latent_end|>", "<|lvr_end|>"
LATENT_TOKENS: Mapping[str, str] = MappingProxyType(
    {"lvr_start_id": START, "lvr_id": SLOT, "lvr_latent_end_id": LATENT_END, "lvr_end_id": END}
)
"""Those of a block without stages, by field."""
STAGE_TOKENS: Mapping[str, str] = MappingProxyType(
    {
        f"{name}_id": f"<|{name}|>"
        for name in ("ctx_start", "ctx_end", "free_start", "free", "free_end", "tgt_start", "tgt_end")
    }
)
"""Those that a block with several stages has besides, by field."""
BLOCK_TOKENS: Mapping[str, str] = MappingProxyType({**LATENT_TOKENS, **STAGE_TOKENS})
"""All of them, by field."""
