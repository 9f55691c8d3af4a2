"""Model folders: reading them safely, writing them whole, and the ones that ship; knows nothing of hooks."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.utils.import_utils import is_accelerate_available

from prismlens.errors import CheckpointError
from prismlens.models.architectures import architecture, with_latents
from prismlens.models.config import LatentConfig
from prismlens.models.draft import draft
from prismlens.models.formats import TODAY, from_released
from prismlens.models.latent import LatentModel
from prismlens.models.processor import IMAGE_PAD, START, LVRProcessor
from prismlens.models.reading import explained, quiet
from prismlens.models.stages import first_stage
from prismlens.models.tokens import BLOCK_TOKENS
from prismlens.models.weights import PICKLED, SAFE, as_dtype, digest_of, named_files, refuse_pickled, stored_dtypes

DeviceMap = str | int | torch.device | dict[str, Any]
"""Where the parts of a model go: ``"auto"``, one device, or names of modules and their devices."""
ZOO = Path(__file__).parent / "zoo"
"""Where the shipped models lie, one folder a model."""
PREFIX = "tiny/"
MANIFEST = "training.json"
SHARD = "5GB"
"""Weights that take more are written as several files of at most this size."""


def zoo_names() -> tuple[str, ...]:
    """Names of the shipped models, ``tiny/...``."""
    return tuple(sorted(PREFIX + folder.name for folder in ZOO.glob("*") if (folder / "config.json").exists()))


def zoo_manifest(name: str) -> dict[str, object]:
    """How a shipped model was trained, and its held-out accuracy."""
    return json.loads((_zoo_folder(name) / MANIFEST).read_text())


def load_checkpoint(
    name: str | Path, *, dtype: torch.dtype | str = torch.float32, device_map: DeviceMap | None = None
) -> tuple[LatentModel, LVRProcessor]:
    """A shipped model (``tiny/...``), a local folder, or a hub id. Only safetensors are read; no remote code is run.

    The architecture is the one that config.json names, see `architectures.ARCHITECTURES`; a folder that a stock class
    of transformers wrote is a model without latents. Folders of the released LVR code are read as they are, see
    `formats.from_released`. Weights go from the files to their place one by one: there is never a second copy of the
    model in memory.

    Args:
        name: what to load.
        dtype: of the weights in memory, as such or by name; ``"auto"`` is that of the files.
        device_map: spread the model, see transformers' ``from_pretrained``; needs the extra ``train`` (accelerate).

    Raises:
        CheckpointError: nothing there, weights that are pickled, cut short, quantised, or do not fit the config, a
            configuration that contradicts itself, or a configuration or tokenizer without the latent block's tokens.
    """
    text = str(name)
    if device_map is not None and not is_accelerate_available():
        raise CheckpointError(
            f"device_map = {device_map!r} without the library accelerate",
            needed="accelerate, which spreads a model over devices",
            cause="prismlens was installed without the extra that brings it",
            fix="pip install 'prismlens[train]', or give device= instead of device_map=",
        )
    source = resolve_source(text)
    model_class, config = _read_config(source, text)
    model = _read_weights(source, model_class, config, dtype, device_map, text)
    return model.eval(), _read_processor(source, config, text)


def save_checkpoint(
    model: LatentModel,
    processor: LVRProcessor,
    folder: str | Path,
    *,
    manifest: dict[str, object] | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a folder that plain transformers reads: all of it, or nothing.

    Args:
        model: the model, in whatever dtype it is to be stored.
        processor: its processor.
        folder: a new or empty folder.
        manifest: what `zoo_manifest` reads.
        max_shard_size: bytes, or a text such as ``"5GB"`` (the default): larger weights become several files.

    Raises:
        CheckpointError: the folder exists and is not empty, a file has its name, or the disk is full.
    """
    with draft(folder) as made:
        write_model(model, processor, made, max_shard_size=max_shard_size)
        if manifest is not None:
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def write_model(
    model: LatentModel,
    processor: LVRProcessor,
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write model and processor into an existing folder; the model's config is given back as it was.

    Args:
        model: the model.
        processor: its processor.
        folder: where to.
        weights: what to store instead of the model's weights under their own names.
        max_shard_size: see `save_checkpoint`.
    """
    before = {field: getattr(model.config, field, None) for field in ("architectures", "dtype")}
    try:
        # Without the last argument a model that was read under old names would be written under them again.
        model.save_pretrained(
            folder, state_dict=weights, max_shard_size=max_shard_size or SHARD, save_original_format=False
        )
    finally:
        for field, value in before.items():
            setattr(model.config, field, value)
    decoding = dict(model.generation_config.to_diff_dict())
    decoding["eos_token_id"] = decoding.get("eos_token_id") or getattr(model.config.text, "eos_token_id", None)
    GenerationConfig(**decoding | {"pad_token_id": processor.pad_id}).save_pretrained(folder)
    processor.save_pretrained(folder)


def weight_hash(model: LatentModel) -> str:
    """Sixteen hex digits that change with any weight; the same wherever the weights lie."""
    # Of what is offloaded the values are not in the module.
    return digest_of(
        (name, load_offloaded_parameter(model, name) if tensor.is_meta else tensor)
        for name, tensor in sorted(model.state_dict().items())
    ).hexdigest()


def resolve_source(name: str) -> str | Path:
    """The checked folder of a shipped or local model, or the hub id itself."""
    folder = _zoo_folder(name) if name.startswith(PREFIX) else Path(name)
    if folder.exists():
        _check_folder(folder)
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"no model at {name!r}",
            needed=f"a shipped model ({_shipped()}), a local folder, or a hub id 'owner/name'",
            cause="a misspelt name, or a relative path read from another working directory",
            fix=f"check the path; relative ones start at {Path.cwd()}",
        )
    return name


def _zoo_folder(name: str) -> Path:
    if name not in zoo_names():
        raise CheckpointError(
            f"no shipped model is called {name!r}",
            needed=f"one of: {_shipped()}",
            cause="a misspelt name, or a model of another version of prismlens",
            fix=f"choose one of them; a local folder that starts with {PREFIX} is written ./{PREFIX}...",
        )
    return ZOO / name.removeprefix(PREFIX)


def _shipped() -> str:
    return ", ".join(zoo_names()) or "none"


def _check_folder(folder: Path) -> None:
    """Refuse a folder without a config, and one whose only weights are pickled."""
    if not folder.is_dir() or not (folder / "config.json").exists():
        raise CheckpointError(
            f"{str(folder)!r} has no config.json",
            needed="a model folder as save_pretrained writes it",
            cause="the folder above or below it was meant, or a download that broke off",
            fix="give the folder that holds config.json",
        )
    files = sorted(path.name for path in folder.iterdir())
    if not any(name.endswith(SAFE) for name in files):
        refuse_pickled(str(folder), [name for name in files if name.endswith(PICKLED)])
        raise CheckpointError(
            f"{str(folder)!r} holds no weights",
            needed=f"weights as {SAFE}",
            cause="a download that broke off, or Git LFS files that were never fetched",
            fix="fetch the folder again",
        )


def _read_config(source: str | Path, name: str) -> tuple[type[LatentModel], Any]:
    """The architecture's class, and the config, its latent settings checked."""
    with explained(
        f"the config of {name!r}",
        needed="config.json of a served architecture, with latents or without",
        cause="a file cut short or edited by hand, or no network for a hub id",
        fix="fetch config.json again",
    ):
        raw = from_released(PreTrainedConfig.get_config_dict(source)[0])
        model_class = architecture(raw)
        config: Any = cast(Any, model_class.config_class).from_dict(with_latents(raw, model_class))
        config.check_latents()
    return model_class, config


def _read_weights(
    source: str | Path,
    model_class: type[LatentModel],
    config: Any,
    dtype: torch.dtype | str,
    device_map: DeviceMap | None,
    name: str,
) -> LatentModel:
    """The model, every parameter of it from the files and nothing in the files left over."""
    small = quiet() if name.startswith(PREFIX) else nullcontext()
    with small, explained(f"the weights of {name!r}", needed=f"whole {SAFE} files that fit config.json"):
        refuse_pickled(name, [file for file in named_files(source, config) if not file.endswith(SAFE)])
        chosen = as_dtype(dtype, stored_dtypes(source, config, name), name)
        placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        # Mismatched shapes are collected, to be refused below under their names.
        loaded: Any = model_class.from_pretrained(
            source, config=config, dtype=chosen, use_safetensors=True, output_loading_info=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, key_mapping=TODAY, **placed,
        )  # fmt: skip
    model, info = loaded
    wrong = [f"{key} (missing)" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} (unexpected)" for key in sorted(info["unexpected_keys"])]
    wrong += [
        f"{key} ({tuple(given)} instead of {tuple(wanted)})" for key, given, wanted in sorted(info["mismatched_keys"])
    ]
    if config.tie_word_embeddings and not model.all_tied_weights_keys:
        wrong.append("lm_head.weight (another than the embeddings, to which the config ties it)")
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights of {name!r} do not fit its config: {', '.join(wrong[:4])}",
            needed="a weight for every parameter, and no others",
            cause="weights of another model, or a shard that is missing",
            fix="fetch the folder again, and check that config.json and weights belong together",
        )
    return model


def _read_processor(source: str | Path, config: LatentConfig, name: str) -> LVRProcessor:
    """The processor; where entry is forced, its prompts end with the token that opens the first stage."""
    with explained(f"the processor of {name!r}", needed="preprocessor_config.json and a fast tokenizer's files"):
        processor = LVRProcessor.from_pretrained(source, start=False)
    _check_tokens(config, processor, name)
    if config.latent_entry != "forced":
        return processor
    token = str(processor.tokenizer.convert_ids_to_tokens(first_stage(config).start))
    return LVRProcessor(processor.image_processor, processor.tokenizer, start=True if token == START else token)


def _check_tokens(config: LatentConfig, processor: LVRProcessor, name: str) -> None:
    """The tokenizer must know image tokens and the block's markers under the ids that the config gives them."""
    fields = {"image_token_id": IMAGE_PAD}
    if config.latent_entry != "none":
        fields |= BLOCK_TOKENS
    for field, token in fields.items():
        wanted = getattr(config, field, None)
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if wanted is not None and found != wanted:
            raise CheckpointError(
                f"{name!r}: {token} is {found} in the tokenizer and {wanted} in the config ({field})",
                needed="the same id in both",
                cause="a tokenizer without the latent tokens was saved with the model",
                fix="save the tokenizer that the model was trained with beside it",
            )
