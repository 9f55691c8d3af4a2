"""A run and clean values of its items as bytes, and back to the last bit; knows nothing of how they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from safetensors.torch import load, save
from torch import Tensor

from prismlens.trace import Run
from prismlens.types import Item
from prismlens.unrolled import Unrolled

TENSORS = tuple(
    field.name for field in fields(Unrolled) if field.name not in ("items", "n_prompt", "stage_names", "n_staged")
)
VALUES, SCORES, ABOUT = "values/", "option_logprobs", "about"


def encode(run: Run, values: Mapping[str, Tensor]) -> bytes:
    """A finished run (its items by id), and tensors by name."""
    tensors = {name: getattr(run.unrolled, name) for name in TENSORS if getattr(run.unrolled, name) is not None}
    tensors |= {SCORES: run.option_logprobs, **{VALUES + name: tensor for name, tensor in values.items()}}
    about = {
        "items": [item.id for item in run.items], "n_prompt": run.unrolled.n_prompt,
        "stage_names": list(run.unrolled.stage_names), "text": list(run.text), "choice": list(run.choice),
        "latent_steps": run.latent_steps,
    }  # fmt: skip
    text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    return save({ABOUT: text, **{name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}})


def decode(content: bytes, items: Sequence[Item], device: torch.device) -> tuple[Run, dict[str, Tensor]]:
    """What `encode` was given; `items` holds the run's items and perhaps more."""
    tensors = load(content)
    about = json.loads(bytes(tensors.pop(ABOUT).tolist()))
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    by_id = {item.id: item for item in items}
    unrolled = Unrolled(
        items=tuple(by_id[name] for name in about["items"]), n_prompt=about["n_prompt"],
        stage_names=tuple(about["stage_names"]), **{name: tensors[name] for name in TENSORS if name in tensors},
    )  # fmt: skip
    run = Run(unrolled, tuple(about["text"]), tuple(about["choice"]), tensors[SCORES], about["latent_steps"])
    return run, {name.removeprefix(VALUES): one for name, one in tensors.items() if name.startswith(VALUES)}
