"""From one format of model folders to the other, and writing the released one; knows nothing of what models compute."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from prismlens.errors import CheckpointError, SettingError
from prismlens.models.checkpoint import MANIFEST, load_checkpoint, resolve_source, write_model
from prismlens.models.draft import draft
from prismlens.models.formats import RELEASED_FILES, released_name, to_released, unknown_there
from prismlens.models.latent import LatentModel
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.models.weights import find


def save_released(
    model: LatentModel,
    processor: LVRProcessor,
    folder: str | Path,
    *,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a folder that the released LVR code (on transformers 4.54) reads, and prismlens too: all of it, or nothing.

    Settings that only prismlens knows are kept in config.json, where the released code does not look; a warning names
    those that change what is computed.

    Args:
        model: the model, in whatever dtype it is to be stored.
        processor: its processor.
        folder: a new or empty folder.
        max_shard_size: see `save_checkpoint`.

    Raises:
        CheckpointError: see `save_checkpoint`; or a part of the model is offloaded, or has no place in that format.
    """
    with draft(folder) as made:
        _write_released(model, processor, made, max_shard_size=max_shard_size)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    to: str = "prismlens",
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
) -> Path:
    """Write a model folder, whatever its format, in the one asked for; the source is only read.

    Args:
        source: a shipped model, a local folder, or a hub id.
        folder: a new or empty folder; it appears whole or not at all.
        to: ``"prismlens"`` (today's transformers) or ``"released"`` (the LVR code on transformers 4.54).
        dtype: to store the weights in; by default that of the source, so that every weight stays as it is.
        max_shard_size: see `save_checkpoint`.

    Returns:
        `folder`. The source's training.json, if there is one, is in it unchanged.

    Raises:
        SettingError: an unknown format.
        CheckpointError: see `load_checkpoint` and `save_released`.
    """
    if to not in _WRITERS:
        raise SettingError(f"to = {to!r}", needed=f"one of {', '.join(map(repr, _WRITERS))}", cause="a misspelt format")
    target = Path(folder)
    with draft(target) as made:  # first, so that a folder in the way is found before anything is loaded
        model, processor = load_checkpoint(source, dtype="auto" if dtype is None else dtype)
        _WRITERS[to](model, processor, made, max_shard_size=max_shard_size)
        manifest = find(resolve_source(str(source)), MANIFEST)
        if manifest is not None:
            shutil.copyfile(manifest, made / MANIFEST)
    return target


def _write_released(
    model: LatentModel, processor: LVRProcessor, folder: Path, *, max_shard_size: int | str | None
) -> None:
    if not isinstance(model, LVRForConditionalGeneration):
        raise CheckpointError(
            f"a model of the class {type(model).__name__}",
            needed="a Qwen2.5-VL: the released code knows no other architecture",
            fix='keep this model in the format "prismlens"',
        )
    ignored = unknown_there(model.config)
    if ignored:
        warnings.warn(
            f"the released code does not know {', '.join(ignored)} and will compute without; prismlens reads it back",
            stacklevel=3,
        )
    config = to_released(model.config)
    write_model(model, processor, folder, weights=_weights(model), max_shard_size=max_shard_size)
    dtype = str(model.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", config | {"torch_dtype": dtype})
    for name, translated in RELEASED_FILES.items():
        _write_json(folder / name, translated(json.loads((folder / name).read_text())))


def _weights(model: LatentModel) -> dict[str, Tensor]:
    """The weights under their released names; an output tied to the embeddings is left out when they are written."""
    weights = dict(model.state_dict())
    offloaded = sorted(name for name, tensor in weights.items() if tensor.is_meta)
    if offloaded:
        raise CheckpointError(
            f"{len(offloaded)} weights are offloaded ({offloaded[0]})",
            needed="a model in memory",
            cause="it was loaded with a device_map that puts parts on disk",
            fix='load it without device_map; dtype="auto" takes no more memory than its files',
        )
    return {released_name(name): tensor for name, tensor in weights.items()}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[..., None]] = {"prismlens": write_model, "released": _write_released}
"""The formats and what writes them."""
