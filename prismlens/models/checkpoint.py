"""Model folders: reading them safely, writing them whole, and the ones that ship; knows nothing of hooks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from prismlens.errors import CheckpointError
from prismlens.models.config import LVRConfig
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import END, IMAGE_PAD, LATENT_END, SLOT, START, LVRProcessor

ZOO = Path(__file__).parent / "zoo"
"""Where the shipped models lie, one folder a model."""
PREFIX = "tiny/"
SAFE = ".safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MANIFEST = "training.json"
OLD_KEYS = {r"^visual\.": "model.visual.", r"^model\.(?!language_model\.|visual\.)": "model.language_model."}
"""Names of weights before transformers 4.52, in which released checkpoints are written, and today's."""


def zoo_names() -> tuple[str, ...]:
    """Names of the shipped models, ``tiny/...``."""
    return tuple(sorted(PREFIX + folder.name for folder in ZOO.glob("*") if (folder / "config.json").exists()))


def zoo_manifest(name: str) -> dict[str, object]:
    """How a shipped model was trained, and its held-out accuracy."""
    return json.loads((_zoo_folder(name) / MANIFEST).read_text())


def load_checkpoint(
    name: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[LVRForConditionalGeneration, LVRProcessor]:
    """A shipped model (``tiny/...``), a local folder, or a hub id. Only safetensors are read; no remote code is run.

    Raises:
        CheckpointError: nothing there, weights that are pickled, cut short, or do not fit the config, or a
            configuration or tokenizer without the latent block's tokens.
    """
    text = str(name)
    source = _source(text)
    config = _read_config(source, text)
    model = _read_weights(source, config, dtype, text)
    with _explained(f"the processor of {text!r}", needed="preprocessor_config.json and a fast tokenizer's files"):
        processor = LVRProcessor.from_pretrained(source, start=config.latent_entry == "forced")
    _check_tokens(config, processor, text)
    return model.eval(), processor


def save_checkpoint(
    model: LVRForConditionalGeneration,
    processor: LVRProcessor,
    folder: str | Path,
    *,
    manifest: dict[str, object] | None = None,
) -> None:
    """Write a folder that plain transformers reads: all of it, or nothing.

    Raises:
        CheckpointError: the folder exists and is not empty, or a file has its name.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{str(folder)!r} exists and is not an empty folder", needed="a new folder", fix="choose another name"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        eos = model.config.text.eos_token_id
        model.save_pretrained(draft)
        GenerationConfig(eos_token_id=eos, pad_token_id=processor.pad_id).save_pretrained(draft)
        processor.save_pretrained(draft)
        if manifest is not None:
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
        folder.chmod(0o755)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def weight_hash(model: LVRForConditionalGeneration) -> str:
    """Sixteen hex digits that change with any weight."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _source(name: str) -> str | Path:
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
        _refuse_pickled(str(folder), [name for name in files if name.endswith(PICKLED)])
        raise CheckpointError(
            f"{str(folder)!r} holds no weights",
            needed=f"weights as {SAFE}",
            cause="a download that broke off, or Git LFS files that were never fetched",
            fix="fetch the folder again",
        )


def _read_config(source: str | Path, name: str) -> LVRConfig:
    """The config, its latent settings checked."""
    with _explained(
        f"the config of {name!r}",
        needed="config.json of a Qwen2.5-VL with latents",
        cause="a file cut short or edited by hand, or no network for a hub id",
        fix="fetch config.json again",
    ):
        config = LVRConfig.from_pretrained(source)
        config.check_latents()
    return config


def _read_weights(source: str | Path, config: LVRConfig, dtype: torch.dtype, name: str) -> LVRForConditionalGeneration:
    """The model, every parameter of it from the files and nothing in the files left over."""
    small = _quiet() if name.startswith(PREFIX) else nullcontext()
    with small, _explained(f"the weights of {name!r}", needed=f"whole {SAFE} files that fit config.json"):
        _refuse_pickled(name, [file for file in _named_files(source, config) if not file.endswith(SAFE)])
        # Mismatched shapes are collected, to be refused below under their names.
        loaded: Any = LVRForConditionalGeneration.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, key_mapping=OLD_KEYS,
        )  # fmt: skip
    model, info = loaded
    wrong = [f"{key} (missing)" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} (unexpected)" for key in sorted(info["unexpected_keys"])]
    wrong += [
        f"{key} ({tuple(given)} instead of {tuple(wanted)})" for key, given, wanted in sorted(info["mismatched_keys"])
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights of {name!r} do not fit its config: {', '.join(wrong[:4])}",
            needed="a weight for every parameter, and no others",
            cause="weights of another model, or a shard that is missing",
            fix="fetch the folder again, and check that config.json and weights belong together",
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar, which a shipped model's few files need not have."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _named_files(source: str | Path, config: LVRConfig) -> list[str]:
    """The weight files that the index and the config name; transformers opens these whatever their format."""
    index = cached_file(
        source, INDEX, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    files = set(json.loads(Path(index).read_text())["weight_map"].values()) if isinstance(index, str) else set()
    explicit = getattr(config, "transformers_weights", None)
    return sorted({str(file) for file in files} | ({str(explicit)} if explicit is not None else set()))


def _refuse_pickled(name: str, files: list[str]) -> None:
    if files:
        raise CheckpointError(
            f"{name!r} holds pickled weights ({files[0]})",
            needed=f"weights as {SAFE}",
            cause="pickled files can run code when they are opened, so they are refused",
            fix="convert them on a machine that you trust: model.save_pretrained(folder)",
        )


def _check_tokens(config: LVRConfig, processor: LVRProcessor, name: str) -> None:
    """The tokenizer must know image tokens and the block's markers under the ids that the config gives them."""
    fields = {"image_token_id": IMAGE_PAD}
    if config.latent_entry != "none":
        fields |= {"lvr_start_id": START, "lvr_id": SLOT, "lvr_latent_end_id": LATENT_END, "lvr_end_id": END}
    for field, token in fields.items():
        wanted = getattr(config, field)
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if wanted is not None and found != wanted:
            raise CheckpointError(
                f"{name!r}: {token} is {found} in the tokenizer and {wanted} in the config ({field})",
                needed="the same id in both",
                cause="a tokenizer without the latent tokens was saved with the model",
                fix="save the tokenizer that the model was trained with beside it",
            )


@contextmanager
def _explained(
    what: str,
    *,
    needed: str,
    cause: str = "a download cut short, files of another model, or no network for a hub id",
    fix: str = "fetch the folder again, and check that its files belong together",
) -> Iterator[None]:
    """Turn whatever transformers raises about damaged files into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file provokes anything: OSError, TypeError, SafetensorError, ...
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{what} could not be read: {first}", needed=needed, cause=cause, fix=fix) from error
