"""prismlens asks a vision-language model that thinks in latents whether its answers use them.

import prismlens as pl

model = pl.load("tiny/lvr")
items = pl.load_items("shapes", n=200)
print(pl.prism(model, items).verdict)
"""

from prismlens.alignment import Alignment, alignment
from prismlens.cache import ActivationCache, open_cache
from prismlens.compare import Comparison, compare
from prismlens.corruption import CorruptionTest, corruption_test
from prismlens.data.load import load_items
from prismlens.data.pairs import Pair, Pairs, load_pairs
from prismlens.decodability import Decodability, ErasureTest, decodability, erasure_test
from prismlens.errors import PrismlensError
from prismlens.experiment import run_conditions
from prismlens.interventions import (
    Constant,
    Cut,
    DeleteKV,
    Edit,
    Identity,
    Mean,
    Noise,
    Oracle,
    Patch,
    Project,
    Repeat,
    Scale,
    Shuffle,
    Skip,
    Source,
    Steer,
    Swap,
    Zero,
)
from prismlens.lens import attention, logit_lens, nearest_patches, sensitivity
from prismlens.models.checkpoint import zoo_manifest, zoo_names
from prismlens.patching import (
    PatchingSweep,
    get_act_patch_attn_head_all_pos_every,
    get_act_patch_attn_head_by_pos_every,
    get_act_patch_attn_head_k_all_pos,
    get_act_patch_attn_head_k_by_pos,
    get_act_patch_attn_head_out_all_pos,
    get_act_patch_attn_head_out_by_pos,
    get_act_patch_attn_head_pattern_all_pos,
    get_act_patch_attn_head_pattern_by_pos,
    get_act_patch_attn_head_q_all_pos,
    get_act_patch_attn_head_q_by_pos,
    get_act_patch_attn_head_v_all_pos,
    get_act_patch_attn_head_v_by_pos,
    get_act_patch_attn_out,
    get_act_patch_block_every,
    get_act_patch_latent,
    get_act_patch_mlp_out,
    get_act_patch_resid_mid,
    get_act_patch_resid_post,
    get_act_patch_resid_pre,
    patching_sweep,
)
from prismlens.positions import answer, describe, image, latent, lead, options, prompt, question, template
from prismlens.prism import Report, prism
from prismlens.results import Results
from prismlens.showing import show
from prismlens.sites import get_act_name
from prismlens.trace import PrismModel, Run, corrupt, load
from prismlens.types import Item
from prismlens.widgets import explore

__version__ = "0.1.0"

__all__ = [
    "ActivationCache",
    "Alignment",
    "Comparison",
    "Constant",
    "CorruptionTest",
    "Cut",
    "Decodability",
    "DeleteKV",
    "Edit",
    "ErasureTest",
    "Identity",
    "Item",
    "Mean",
    "Noise",
    "Oracle",
    "Pair",
    "Pairs",
    "PatchingSweep",
    "Patch",
    "PrismModel",
    "PrismlensError",
    "Project",
    "Repeat",
    "Report",
    "Results",
    "Run",
    "Scale",
    "Shuffle",
    "Skip",
    "Source",
    "Steer",
    "Swap",
    "Zero",
    "alignment",
    "answer",
    "attention",
    "compare",
    "corrupt",
    "corruption_test",
    "decodability",
    "describe",
    "explore",
    "erasure_test",
    "get_act_name",
    "get_act_patch_latent",
    "get_act_patch_resid_pre",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_post",
    "get_act_patch_attn_out",
    "get_act_patch_mlp_out",
    "get_act_patch_block_every",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_all_pos_every",
    "image",
    "latent",
    "lead",
    "load",
    "load_items",
    "load_pairs",
    "open_cache",
    "logit_lens",
    "nearest_patches",
    "options",
    "patching_sweep",
    "prism",
    "prompt",
    "question",
    "run_conditions",
    "sensitivity",
    "show",
    "template",
    "zoo_manifest",
    "zoo_names",
]
