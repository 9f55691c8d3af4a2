"""The released way of writing a model folder and today's, as pure translations of dicts and names; opens no file."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from transformers import Qwen2_5_VLTextConfig

from prismlens.errors import CheckpointError
from prismlens.models.config import LVRConfig
from prismlens.models.heads import NONE, RELEASED_TYPES
from prismlens.models.tokens import BLOCK_TOKENS

RELEASED_CLASS, OWN_CLASS = "QwenWithLVR", "LVRForConditionalGeneration"
TODAY = {r"^visual\.": "model.visual.", r"^model\.(?!language_model\.|visual\.)": "model.language_model."}
"""Patterns of the released names of weights, and today's in their place."""
_PREFIXES = (("model.language_model.", "model."), ("model.visual.", "visual."))
"""Today's prefixes of names of weights and the released ones; `lm_head`, `lvr_head` and the end vector have none."""

_IMAGE_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_TEXT_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HEAD = ("lvr_head", "lvr_head_type", "latent_end_token")
_LIFTED = (*BLOCK_TOKENS, *_IMAGE_IDS, *_HEAD)
"""Fields that a released config repeats in its text_config, and that belong to the top level today."""
_REPEATED = (*_LIFTED, *_TEXT_IDS, "tie_word_embeddings")
"""Fields that, written in both places, must say the same."""
_TEXT_FIELDS = (*Qwen2_5_VLTextConfig.__annotations__, "rope_theta", "rope_scaling")
"""The language model's fields, which a released config repeats at its top level."""
_UNKNOWN_THERE = ("visibility", "latent_close", "latent_stages")
"""Settings that change what is computed and that the released code does not know."""
VISION_THETA = 10000.0
"""The base of the vision tower's rotary positions, a constant in the released code's transformers."""


def released_name(name: str) -> str:
    """The released name of a weight: ``model.language_model.norm.weight`` is ``model.norm.weight`` there."""
    for today, released in _PREFIXES:
        if name.startswith(today):
            return released + name.removeprefix(today)
    return name


def from_released(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, released or not, as `LVRConfig` wants them; one that is today's stays as it is.

    Ids that stand only in ``text_config`` are lifted out of it, and the language model's fields are taken from there.
    A released config that does not say how latents begin gets ``latent_entry = "emitted"``: that code's prompts end
    before the start marker, and the model writes it.

    Raises:
        CheckpointError: a field has one value at the top level and another in ``text_config``.
    """
    if not isinstance(raw, dict):
        raise CheckpointError(f"config.json holds a {type(raw).__name__}", needed="an object of settings")
    config = deepcopy(raw)
    text = config.get("text_config")
    if isinstance(text, dict):
        _refuse_contradictions(config, text)
        for field in _LIFTED:
            value = text.pop(field, None)
            if value is not None:
                config[field] = value
        for field in _TEXT_FIELDS:
            config.pop(field, None)
        text.pop("architectures", None)
        _modern_rope(text)
    if config.get("architectures") == [RELEASED_CLASS]:
        config["architectures"] = [OWN_CLASS]
        config.setdefault("latent_entry", "emitted")
        if isinstance(text, dict):
            text.setdefault("bos_token_id", None)  # transformers 4 does not write a None, and 5 has another default
    return config


def to_released(config: LVRConfig) -> dict[str, Any]:
    """The fields of a config.json that the released code reads, and prismlens too; the inverse of `from_released`.

    Raises:
        CheckpointError: the model has something that has no place there.
    """
    made: dict[str, Any] = config.to_diff_dict() | _released_head(config)
    text, vision = made["text_config"], made["vision_config"]
    _old_rope(text)
    _old_vision(vision)
    tied = bool(config.tie_word_embeddings)
    text.update({field: made[field] for field in _LIFTED if made.get(field) is not None}, tie_word_embeddings=tied)
    made.update({field: text[field] for field in _TEXT_FIELDS if field in text}, tie_word_embeddings=tied)
    for part in (made, text, vision):
        dtype = part.pop("dtype", None)
        if dtype is not None:
            part["torch_dtype"] = str(dtype).removeprefix("torch.")
    return made | {"architectures": [RELEASED_CLASS], "model_type": "qwen2_5_vl"}


def _released_head(config: LVRConfig) -> dict[str, Any]:
    """Head and end vector as the released class asks for them, which it does of every config."""
    kinds = {ours: theirs for theirs, ours in RELEASED_TYPES.items()}
    return {
        "lvr_head": config.head != NONE,
        "lvr_head_type": kinds.get(config.head, "simple"),
        "latent_end_token": bool(config.latent_end_token),
    }


def unknown_there(config: LVRConfig) -> tuple[str, ...]:
    """Settings of a model that prismlens obeys and the released code does not know."""
    return tuple(field for field in _UNKNOWN_THERE if getattr(config, field, None))


def _refuse_contradictions(config: dict[str, Any], text: dict[str, Any]) -> None:
    for field in _REPEATED:
        outer, inner = config.get(field), text.get(field)
        if outer is not None and inner is not None and outer != inner:
            raise CheckpointError(
                f"config.json has {field} = {outer!r} at its top level and {inner!r} in text_config",
                needed="the same value in both, or one of them only",
                cause="one of the two was edited by hand, or tokens were added twice",
                fix="keep the value that the tokenizer and the weights have",
            )


def _modern_rope(text: dict[str, Any]) -> None:
    """Move ``rope_theta`` and ``rope_scaling`` into ``rope_parameters``, under which today's transformers has both."""
    scaling, theta = text.pop("rope_scaling", None), text.pop("rope_theta", None)
    if scaling is None and theta is None:
        return
    scaling = dict(scaling or {})
    kind = scaling.pop("type", "default")
    scaling.setdefault("rope_type", kind)
    text["rope_parameters"] = scaling | ({} if theta is None else {"rope_theta": theta})


def _old_rope(text: dict[str, Any]) -> None:
    parameters = dict(text.pop("rope_parameters"))
    text["rope_theta"] = parameters.pop("rope_theta")
    text["rope_scaling"] = parameters | {"type": parameters["rope_type"]}


def _old_vision(vision: dict[str, Any]) -> None:
    theta = (vision.pop("rope_parameters", None) or {}).get("rope_theta", VISION_THETA)
    if theta != VISION_THETA:
        raise CheckpointError(
            f"the vision tower's rope_theta is {theta}",
            needed=f"{VISION_THETA}, a constant in the released code",
            fix='keep this model in the format "prismlens"',
        )
    vision["model_type"] = "qwen2_5_vl"


def _released_images(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"processor_class": "Qwen2_5_VLProcessor"}


def _released_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Without what transformers 5 writes and transformers 4 stumbles over."""
    made = {key: value for key, value in config.items() if key not in ("backend", "is_local")}
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = made.get("extra_special_tokens")
    if isinstance(extra, list):
        del made["extra_special_tokens"]
        made["additional_special_tokens"] = extra
    return made | {"processor_class": "Qwen2_5_VLProcessor"}


RELEASED_FILES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "preprocessor_config.json": _released_images,
    "tokenizer_config.json": _released_tokenizer,
}
"""Files of a processor that the released code reads in another form, and what brings them into it."""
