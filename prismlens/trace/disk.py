"""`run_with_cache` for more items than memory holds: which run, which plan; knows nothing of files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from prismlens.cache import ActivationCache
from prismlens.positions import Role
from prismlens.trace.names import NamesFilter, matching_names
from prismlens.trace.prepared import needs_reference
from prismlens.trace.provenance import edited_sites, provenance
from prismlens.trace.streaming import stream_to_disk
from prismlens.types import Item


def cache_to_disk(
    model: Any,
    items: Sequence[Item],
    folder: str | Path,
    names_filter: NamesFilter = None,
    *,
    positions: Role | None = None,
    shard_items: int | None = None,
    progress: bool = False,
) -> ActivationCache:
    """Run the items, keep activations of the selected positions in a folder, and open it.

    Edits act as in one run of all items: where they need clean values, donors or spreads, these come from a clean run
    of all items, which is made first, each time the call goes on, and kept in memory (without its activations).

    Args:
        model: a PrismModel; its edits apply.
        items: the items.
        folder: where the cache is to be; `open_cache` opens it later, without the model and without the images.
        names_filter: which sites to keep.
        positions: a role; every position that is not padding by default.
        shard_items: items in memory at a time; `batch_size` by default, and best a multiple of it.
        progress: show a bar over shards.

    Raises:
        ResultsError, SettingError, ItemError: see `stream_to_disk`, which also says how a call is resumed.
        RoleError: an item lacks the positions; the shards before it stay for a call with the same plan.
    """
    n_layers, edits = model.hf.n_layers, model.active_edits
    names = matching_names(
        names_filter, n_layers, head=model.hf.has_head, n_vision_layers=model.hf.n_vision_layers,
        refuse=model.hf.refuse_site,
    )  # fmt: skip
    settings = model.settings()

    @lru_cache(maxsize=1)
    def reference() -> Any:
        return model.clean().generate(items) if needs_reference(edits) else None

    def compute(part: Sequence[Item]) -> ActivationCache:
        run = model.generate(part, reference=reference())
        return model.run_with_cache(part, names, positions=positions, run=run, return_type=None)[1]

    plan = provenance(model, names, positions, latent_steps=settings.latent_steps)
    plan |= {"latent_exit": settings.latent_exit, "max_new_tokens": settings.max_new_tokens}
    size = model.batch_size if shard_items is None else shard_items
    return stream_to_disk(
        items, folder, compute, plan=plan, shard_items=size, readout=model.readout,
        edited=edited_sites(edits, n_layers), progress=progress,
    )  # fmt: skip
