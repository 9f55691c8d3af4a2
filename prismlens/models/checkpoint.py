"""Model folders: reading them safely, writing them whole, and the ones that ship; knows nothing of hooks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig

from prismlens.errors import CheckpointError
from prismlens.models.config import LVRConfig
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor

ZOO = Path(__file__).parent / "zoo"
"""Where the shipped models lie, one folder a model."""
PREFIX = "tiny/"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MANIFEST = "training.json"


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
            configuration without the latent block's tokens.
    """
    text = str(name)
    folder = _zoo_folder(text) if text.startswith(PREFIX) else Path(text)
    if folder.exists():
        _check_folder(folder)
    elif text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(
            f"no model at {text!r}",
            needed=f"a shipped model ({', '.join(zoo_names()) or 'none'}), a local folder, or a hub id 'owner/name'",
        )
    source = folder if folder.exists() else text
    try:
        config = LVRConfig.from_pretrained(source)
        loaded: Any = LVRForConditionalGeneration.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        model, info = loaded
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{text!r} could not be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            needed="whole safetensors files that fit config.json",
            cause="a download cut short, weights of another model, or no network for a hub id",
            fix="fetch the folder again, and check that config.json and weights belong together",
        ) from error
    wrong = sorted(
        {*info["missing_keys"], *info["unexpected_keys"], *(str(k) for k in info.get("mismatched_keys", ()))}
    )
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights of {text!r} do not fit its config: {', '.join(wrong[:4])}",
            needed="a weight for every parameter, and no others",
            cause="weights of another model, or a shard that is missing",
        )
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
        CheckpointError: the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"the folder {str(folder)!r} is not empty", needed="a new folder", fix="choose another name"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        eos = model.config.text.eos_token_id
        model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=processor.pad_id)
        model.save_pretrained(draft)
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


def _zoo_folder(name: str) -> Path:
    folder = ZOO / name.removeprefix(PREFIX)
    if name not in zoo_names():
        raise CheckpointError(f"no shipped model is called {name!r}", needed=f"one of {', '.join(zoo_names())}")
    return folder


def _check_folder(folder: Path) -> None:
    """Refuse a folder without a config, and one whose only weights are pickled."""
    if not folder.is_dir() or not (folder / "config.json").exists():
        raise CheckpointError(
            f"{str(folder)!r} has no config.json", needed="a model folder as save_pretrained writes it"
        )
    files = [path.name for path in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        pickled = [name for name in files if name.endswith(PICKLED)]
        raise CheckpointError(
            f"{str(folder)!r} holds " + (f"pickled weights ({pickled[0]})" if pickled else "no weights"),
            needed="weights as .safetensors",
            cause="pickled files run code when they are opened, so they are refused" if pickled else "",
            fix="convert them on a machine that you trust: model.save_pretrained(folder, safe_serialization=True)",
        )


def _check_tokens(config: LVRConfig, processor: LVRProcessor, name: str) -> None:
    """The tokenizer must know the block's markers under the ids that the config gives them."""
    if config.latent_entry == "none":
        return
    for field in ("lvr_start_id", "lvr_id", "lvr_end_id"):
        token = "<|" + field.removesuffix("_id") + "|>"
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if found != getattr(config, field):
            raise CheckpointError(
                f"{name!r}: {token} is {found} in the tokenizer and {getattr(config, field)} in the config ({field})",
                needed="the same id in both",
                cause="a tokenizer without the latent tokens was saved with the model",
                fix="save the tokenizer that the model was trained with beside it",
            )
