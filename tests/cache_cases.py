"""Float64 models whose every weight matters, and caches of them with what plain hooks saw inside their blocks."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from prismlens import trace
from prismlens.cache import ActivationCache
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.trace import PrismModel
from prismlens.training.architecture import initialise, tiny_config, tiny_processor

LAYERS, STEPS, WIDTH, HEADS = 3, 3, 64, 2


def model_of(
    *, biased: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64, **config: object
) -> PrismModel:
    """An untrained model with norm weights other than 1 and, on request, a bias wherever a block writes."""
    processor = tiny_processor(start=True)
    settings: dict = {"latent_steps": STEPS, "latent_close": [9, 10], **config}
    hf = LVRForConditionalGeneration(tiny_config(processor.tokenizer, width=WIDTH, layers=LAYERS, **settings)).eval()
    initialise(hf, seed)
    generator = torch.Generator().manual_seed(seed)
    language = hf.model.language_model
    norms = [norm for layer in language.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    with torch.no_grad():
        for norm in (*norms, language.norm):
            norm.weight.copy_(0.5 + torch.rand(WIDTH, generator=generator))
        for layer in language.layers if biased else ():
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.bias = nn.Parameter(torch.randn(WIDTH, generator=generator))
    model = trace.load((hf.to(dtype), processor))
    model.max_new_tokens = 2
    return model


def with_inside(model: PrismModel, make: Callable[[], ActivationCache]) -> ActivationCache:
    """A cache with ``attn.hook_z`` and ``mlp.hook_post`` too, as plain hooks saw them in the last forward."""
    layers, seen, handles = model.hf.model.language_model.layers, {}, []
    for index, layer in enumerate(layers):
        for name, module in (("attn.hook_z", layer.self_attn.o_proj), ("mlp.hook_post", layer.mlp.down_proj)):
            key = f"blocks.{index}.{name}"
            handles.append(module.register_forward_pre_hook(lambda _, args, key=key: seen.update({key: args[0]})))
    try:
        cache = make()
    finally:
        for handle in handles:
            handle.remove()
    rows, columns = cache.positions.rows, cache.positions.columns
    values = {key: value[rows, columns] for key, value in seen.items()}
    values = {key: v.unflatten(-1, (HEADS, -1)) if key.endswith("hook_z") else v for key, v in values.items()}
    return replace(cache, values_by_name={**cache.values_by_name, **values})
