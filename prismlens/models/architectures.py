"""The architectures that are served, by the ``model_type`` of a config.json; opens no file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prismlens.errors import CheckpointError
from prismlens.models.config import LatentConfig
from prismlens.models.latent import LatentModel
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.qwen3_vl import Qwen3LVRForConditionalGeneration

ARCHITECTURES: Mapping[str, type[LatentModel]] = MappingProxyType(
    {"qwen2_5_vl": LVRForConditionalGeneration, "qwen3_vl": Qwen3LVRForConditionalGeneration}
)
"""``model_type`` -> the class, which names its config's class and says how its sites differ."""


def architecture(raw: Mapping[str, Any]) -> type[LatentModel]:
    """The class for the fields of a config.json.

    Raises:
        CheckpointError: an architecture that is not in the table.
    """
    kind = str(raw.get("model_type"))
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json has model_type = {kind!r}",
            needed=f"one of {', '.join(ARCHITECTURES)}",
            cause="a model of another architecture",
            fix="add its class to prismlens.models.architectures.ARCHITECTURES",
        )
    return ARCHITECTURES[kind]


def with_latents(raw: dict[str, Any], model: type[LatentModel]) -> dict[str, Any]:
    """The fields of a config.json; one that a stock class wrote, without any setting of latents, gets none of them."""
    own = set(LatentConfig.__dataclass_fields__) & set(raw)
    if own or raw.get("architectures") not in (None, [stock_name(model)]):
        return raw
    return raw | {"latent_entry": "none"}


def stock_name(model: type[LatentModel]) -> str:
    """The name of the class of transformers that a latent-reasoning class is made from."""
    return model.__mro__[model.__mro__.index(LatentModel) + 1].__name__
