"""From a name to a model that can be asked: the only way in for users; knows nothing of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from prismlens.errors import CheckpointError, SettingError
from prismlens.models.checkpoint import load_checkpoint, weight_hash
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.trace.model import PrismModel


def load(
    source: str | Path | tuple[LVRForConditionalGeneration, LVRProcessor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    batch_size: int = 50,
) -> PrismModel:
    """Load a model.

    Args:
        source: a shipped model (``"tiny/lvr"``), a local folder, a hub id, or a model with its processor.
        dtype: of the weights in memory; a model that is passed in keeps its own.
        device: where to run.
        batch_size: items a batch.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size = {batch_size}", needed="at least 1")
    if isinstance(source, tuple):
        hf, processor = source
        name = "(given)"
    else:
        hf, processor = load_checkpoint(source, dtype=dtype)
        name = str(source)
    if not isinstance(hf, LVRForConditionalGeneration):
        raise CheckpointError(
            f"a {type(hf).__name__} was given", needed="an LVRForConditionalGeneration",
            fix="save it with save_pretrained and load the folder",
        )  # fmt: skip
    cast(Any, hf).to(device)
    return PrismModel(hf.eval(), processor, name, revision=weight_hash(hf), batch_size=batch_size)
