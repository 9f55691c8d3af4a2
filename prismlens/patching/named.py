"""The sweeps under TransformerLens' names, and ``resid_post``, which it never had; knows only what they are called.

    get_act_patch_resid_post(model, pairs.clean, pairs.corrupted, positions=[image.box, latent, answer[0]])

Each is `patching_sweep` of one name. Theirs patch tokens at one prompt; these patch items with images, many pairs at
once. Result axes are theirs: ``[layer, pos]``, with a last axis ``head`` for heads, ``[layer, head]`` for all positions
together, and a first axis ``site`` where several sites are swept (``[site, layer, pos]``). The default direction is
theirs too: clean values into the corrupted run. ``get_act_patch_latent`` has the axis ``pos`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from prismlens.patching.result import PatchingSweep
from prismlens.patching.sweep import patching_sweep
from prismlens.trace import PrismModel
from prismlens.types import Item

NamedSweep: TypeAlias = Callable[..., PatchingSweep]
"""``(model, clean_items, corrupted_items, **keywords)``, keywords as in `patching_sweep`."""


def _named(name: str) -> NamedSweep:
    """`patching_sweep` of one name, as a function with a name of its own."""

    def run(
        model: PrismModel, clean_items: Sequence[Item], corrupted_items: Sequence[Item], **keywords: Any
    ) -> PatchingSweep:
        return patching_sweep(model, clean_items, corrupted_items, name, **keywords)

    run.__name__ = run.__qualname__ = f"get_act_patch_{name}"
    run.__doc__ = f"`patching_sweep` of {name!r}; keywords as there."
    return run


get_act_patch_latent = _named("latent")
get_act_patch_resid_pre = _named("resid_pre")
get_act_patch_resid_mid = _named("resid_mid")
get_act_patch_resid_post = _named("resid_post")
get_act_patch_attn_out = _named("attn_out")
get_act_patch_mlp_out = _named("mlp_out")
get_act_patch_block_every = _named("block_every")
get_act_patch_attn_head_out_by_pos = _named("attn_head_out_by_pos")
get_act_patch_attn_head_q_by_pos = _named("attn_head_q_by_pos")
get_act_patch_attn_head_k_by_pos = _named("attn_head_k_by_pos")
get_act_patch_attn_head_v_by_pos = _named("attn_head_v_by_pos")
get_act_patch_attn_head_pattern_by_pos = _named("attn_head_pattern_by_pos")
get_act_patch_attn_head_out_all_pos = _named("attn_head_out_all_pos")
get_act_patch_attn_head_q_all_pos = _named("attn_head_q_all_pos")
get_act_patch_attn_head_k_all_pos = _named("attn_head_k_all_pos")
get_act_patch_attn_head_v_all_pos = _named("attn_head_v_all_pos")
get_act_patch_attn_head_pattern_all_pos = _named("attn_head_pattern_all_pos")
get_act_patch_attn_head_by_pos_every = _named("attn_head_by_pos_every")
get_act_patch_attn_head_all_pos_every = _named("attn_head_all_pos_every")
