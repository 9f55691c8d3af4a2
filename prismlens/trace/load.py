"""From a name to a model that can be asked: the only way in for users; knows nothing of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from prismlens.errors import CheckpointError, SettingError
from prismlens.models.checkpoint import DeviceMap, load_checkpoint, weight_hash
from prismlens.models.latent import LatentModel
from prismlens.models.processor import LVRProcessor
from prismlens.trace.model import PrismModel


def load(
    source: str | Path | tuple[LatentModel, LVRProcessor],
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    batch_size: int = 50,
    check: bool = True,
) -> PrismModel:
    """Load a model.

    Args:
        source: a shipped model (``"tiny/lvr"``), a local folder, a hub id, or a model with its processor.
        dtype: of the weights in memory, as such or by name (``"bfloat16"``); ``"auto"`` is that of the files, and the
            default float32.
        device: where to run; by default the CPU, and for a model that is passed in the place where it is.
        device_map: spread the model over devices instead: ``"auto"``, or names of modules and their devices. Needs the
            extra ``train`` (accelerate).
        batch_size: items a batch.
        check: see that the model's sites are where their names say, which takes a few short forwards (on the meta
            device only modules and their widths are looked at); see `PrismModel.check`.

    Raises:
        CheckpointError: see `load_checkpoint`.
        SettingError: settings that contradict each other, or that a model which is passed in cannot follow.
        WiringError: a site is not where its name says.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size = {batch_size}", needed="at least 1")
    if device is not None and device_map is not None:
        raise SettingError(
            f"device = {str(device)!r} and device_map = {device_map!r}",
            needed="one of them",
            cause="a device_map already says where every part goes",
            fix="leave out device",
        )
    if isinstance(source, tuple):
        hf, processor = source
        name = "(given)"
        _refuse_for_given(dtype=dtype, device_map=device_map)
    else:
        hf, processor = load_checkpoint(source, dtype=torch.float32 if dtype is None else dtype, device_map=device_map)
        name = str(source)
    if not isinstance(hf, LatentModel):
        raise CheckpointError(
            f"a {type(hf).__name__} was given", needed="a LatentModel, such as LVRForConditionalGeneration",
            fix="save it with save_pretrained and load the folder",
        )  # fmt: skip
    if device is not None:
        _move(hf, device)
    revision = "" if _weightless(hf) else weight_hash(hf)
    model = PrismModel(hf.eval(), processor, name, revision=revision, batch_size=batch_size)
    if check:
        model.check()
    return model


def _weightless(hf: LatentModel) -> bool:
    """Whether the model was built without weights; one that is offloaded has them elsewhere."""
    return getattr(hf, "hf_device_map", None) is None and any(value.is_meta for value in hf.parameters())


def _refuse_for_given(**settings: object) -> None:
    """A model that is passed in has its dtype and its places already."""
    for name, value in settings.items():
        if value is not None:
            raise SettingError(
                f"{name} = {value!r} for a model that is passed in",
                needed=f"no {name}",
                cause="it applies to files that are read",
                fix="convert or place the model before it is passed in, or load its folder",
            )


def _move(hf: LatentModel, device: str | torch.device) -> None:
    """Move a model that is not spread over devices; accelerate's hooks would move the inputs of one that is."""
    spread = getattr(hf, "hf_device_map", None)
    if spread is not None and len({str(place) for place in spread.values()}) > 1:
        raise SettingError(
            f"device = {str(device)!r} for a model that lies on {', '.join(sorted({str(p) for p in spread.values()}))}",
            needed="no device",
            cause="the model was loaded with a device_map",
            fix="leave out device, or load the model without device_map",
        )
    cast(Any, hf).to(device)
