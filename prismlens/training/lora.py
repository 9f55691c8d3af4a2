"""LoRA fine-tuning through peft: small matrices beside the language model's linear layers, merged before saving."""

from __future__ import annotations

from typing import Any, cast

from prismlens.errors import TrainingError
from prismlens.models.lvr import LVRForConditionalGeneration

LINEAR = r"model\.language_model\.layers\.\d+\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The layers that are given LoRA matrices: attention and MLP of the language model, never the tower."""


def add_lora(model: LVRForConditionalGeneration, rank: int) -> LVRForConditionalGeneration:
    """The model itself, its linear layers wrapped and all else frozen but the rows that new tokens may need.

    Args:
        model: changed in place.
        rank: of the matrices; they are scaled by alpha / rank with alpha = 2 x rank.

    Raises:
        TrainingError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TrainingError(
            f"lora = {rank} without peft", needed="peft", fix="pip install 'prismlens[train]'"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR, bias="none")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(config, cast(Any, model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("lvr_"))
    return model


def merged(model: LVRForConditionalGeneration) -> LVRForConditionalGeneration:
    """The model itself with the matrices, if it has some, added to its weights and the wrappers gone."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            cast(Any, layer).merge()
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, cast(Any, layer).get_base_layer())
    return model
