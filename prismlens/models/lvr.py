"""The latent-reasoning Qwen2.5-VL; knows only which stock class it is made from."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration

from prismlens.models.config import LVRConfig
from prismlens.models.latent import HookPoint, LatentModel, StepOutput

__all__ = ["HookPoint", "LVRForConditionalGeneration", "StepOutput"]


class LVRForConditionalGeneration(LatentModel, Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` whose inputs may be latents; see `LatentModel`."""

    config_class = LVRConfig
    config: LVRConfig
