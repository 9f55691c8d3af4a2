"""What the numbers of a cache depend on, as JSON values; knows no items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prismlens.interventions import Edit
from prismlens.positions import Role
from prismlens.results import environment_manifest
from prismlens.sites import expand


def provenance(model: Any, names: Sequence[str], positions: Role | None, *, latent_steps: int) -> dict[str, Any]:
    """The manifest of a cache.

    Args:
        model: a PrismModel, with the edits that are active now.
        names: the sites that are read.
        positions: where they are read; None for every position.
        latent_steps: the budget of the run.
    """
    return {
        "model": model.name, "weights": model.revision, "dtype": str(model.hf.dtype), "device": str(model.hf.device),
        "attention": model.hf.config._attn_implementation, "threads": torch.get_num_threads(),
        "batch_size": model.batch_size, "latent_steps": latent_steps, "decoding": "greedy",
        "edits": [edit.to_json() for edit in model.active_edits], "names": list(names),
        "positions": None if positions is None else str(positions), "environment": environment_manifest(),
    }  # fmt: skip


def edited_sites(edits: Sequence[Edit], n_layers: int) -> tuple[str, ...]:
    """The names of the sites that edits write to."""
    return tuple(site.name for edit in edits for site in expand(edit.site, n_layers))
