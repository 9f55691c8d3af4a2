"""The model users hold: generate, run_with_cache, run_with_hooks, trace; edits and contexts lie beneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from prismlens.cache import ActivationCache
from prismlens.errors import EditError
from prismlens.interventions import Structural
from prismlens.positions import Role
from prismlens.trace.caching import (
    PosSlice,
    Wanted,
    one_number,
    refuse_heads,
    refuse_return_type,
    refuse_vision,
    stop_of,
)
from prismlens.trace.checked import checked_items
from prismlens.trace.disk import cache_to_disk
from prismlens.trace.edited import EditedModel
from prismlens.trace.editing import BatchEdits
from prismlens.trace.free_tracing import FreeTracer, open_free_trace
from prismlens.trace.gradients import Metric
from prismlens.trace.hooks import Hooks, hook_set
from prismlens.trace.names import NamesFilter, matching_names
from prismlens.trace.remote import backend_of
from prismlens.trace.run import Run
from prismlens.trace.running import joined, refuse_contradictions, refuse_mode, replayed_logits
from prismlens.trace.tracing import NamedTracer, open_trace
from prismlens.trace.turn import require_turn
from prismlens.types import Item


@dataclass(eq=False)
class PrismModel(EditedModel):
    """A latent-reasoning model, its processor, and the edits that apply to every run.

    The arguments are those of `EditedModel`: the transformers model, its processor, a name, a revision, edits, and how
    many items a batch has and how many tokens an answer. `edited`, `clean`, `settings`, `targets`, `cfg` and
    `hook_dict` are documented there.
    """

    def generate(
        self,
        items: Sequence[Item],
        *,
        latent_steps: int | None = None,
        max_new_tokens: int | None = None,
        reference: Run | None = None,
        progress: bool = False,
    ) -> Run:
        """Run items and return what came out.

        Free edits act while the model unrolls its own latents. Under held edits the latents of a clean run are fed
        instead, and the text is decoded anew after them. Hooks of open `hooks` contexts are called in every forward.

        Args:
            items: any number; they run in batches of `batch_size`, in order.
            latent_steps: another latent budget than the checkpoint's; an error on a block with several stages.
            max_new_tokens: text tokens after the latents.
            reference: a clean run of these items, and perhaps of more, where edits need one: donors are drawn from all
                of it, and means and spreads are measured on all of it. It is made from `items` when it is not given.
            progress: show a bar.

        Raises:
            ItemError: no items, two with the same id, or one that the reference lacks.
            DonorError: an edit swaps, and an item has no possible donor.
        """
        return self._run(items, latent_steps, max_new_tokens, reference, progress, None)

    def run_with_cache(
        self,
        items: Sequence[Item],
        names_filter: NamesFilter = None,
        *,
        positions: Role | None = None,
        run: Run | None = None,
        pos_slice: PosSlice | None = None,
        stop_at_layer: int | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        metric: Metric | None = None,
        heads: Sequence[int] | None = None,
        return_type: Literal["logits"] | None = "logits",
    ) -> tuple[Any, ActivationCache]:
        """Run the items, then replay the finished sequences in one forward and keep activations.

        Args:
            items: the items.
            names_filter: which sites to keep; see `NamesFilter`.
            positions: a role; every position that is not padding by default.
            run: a finished run of the same items under the same edits, to replay instead of running again.
            pos_slice: in place of `positions`: an index, several, or a slice of each item's own positions.
            stop_at_layer: the replay computes nothing from this block on; negative numbers count from the end.
            device: where the cache and the logits are kept.
            remove_batch_dim: of a single item: leave out the axis over items.
            incl_bwd: keep gradients too, as ``name + "_grad"``. Latents are held: each is a constant of its own.
            metric: what the gradients are of; see `Metric`.
            heads: of ``pattern`` and ``attn_scores``, keep these query heads only.
            return_type: None computes no logits. With a real vocabulary they are larger than the activations of many
                layers.

        Returns:
            Logits at the selected positions (None under `stop_at_layer` or ``return_type=None``), and the cache:
            ``[batch, pos, ...]`` where every item has equally many selected positions, else ``[n, ...]``.

        Raises:
            PrismlensError: the replay's states differ from those of the run by more than rounding.
            SettingError: arguments that contradict each other.
        """
        items = checked_items(items)
        refuse_return_type(return_type, metric)
        chosen = None if heads is None else tuple(heads)
        wanted = Wanted(items, positions, pos_slice, device, remove_batch_dim, chosen, return_type is not None)
        stop = stop_of(stop_at_layer, self.hf.n_layers, metric)
        metric = one_number(metric, incl_bwd, -(-len(items) // self.batch_size))
        names = matching_names(
            names_filter, self.hf.n_layers, head=self.hf.has_head, stop_at_layer=stop,
            n_vision_layers=self.hf.n_vision_layers, refuse=self.hf.refuse_site,
        )  # fmt: skip
        refuse_vision(names, wanted)
        refuse_heads(chosen, names, self.cfg.n_heads, metric)
        run = self.generate(items) if run is None else run.take(items)
        logits, cache = self._cached(run, names, wanted, stop, metric)
        return (None if stop_at_layer is not None or return_type is None else logits), cache

    def run_with_hooks(
        self,
        items: Sequence[Item],
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        mode: Literal["free", "held"] = "free",
        positions: Role | None = None,
        return_type: Literal["logits", "run", "both"] = "logits",
        run: Run | None = None,
        metric: Metric | None = None,
    ) -> Any:
        """Run the items and call functions with the values at sites.

        Args:
            items: the items.
            fwd_hooks: pairs of a name, a short name (every layer's) or a predicate of names, and a function
                ``fn(value, *, hook)`` that returns None or a tensor of the same shape; see `Hook`.
            bwd_hooks: the same, called with gradients; needs ``mode="held"`` and a metric.
            mode: ``"free"``: the model unrolls its own latents, and a function is called once a forward with that
                forward's columns: the prompt, then one column at a time. ``"held"``: the sequences of a run without
                the hooks are replayed, and a function is called once a batch with every column.
            positions: give the functions the values at these positions only, ``[n, ...]``.
            return_type: ``"logits"``, ``"run"`` or ``"both"`` (free only).
            run: the finished run to replay (held only).
            metric: what gradients are of; see `Metric`. Its logits are those at the sources of the generated columns.

        Returns:
            Logits that each generated column is, or would be, chosen from: ``[batch, pos, d_vocab]``, NaN where a row
            has ended. Or the run, or both.

        Raises:
            EditError: a function was not called as often as its site was reached, or returned another shape.
            SettingError: arguments that contradict each other.
        """
        refuse_contradictions(run, mode, return_type, bool(bwd_hooks), metric)
        items = checked_items(items)
        hooks = hook_set(self.hook_dict, self.hf.n_layers, fwd_hooks, bwd_hooks, positions)
        if mode == "held":
            clean = self.generate(items) if run is None else run.take(items)
            metric = one_number(metric, bool(bwd_hooks), -(-len(items) // self.batch_size))
            every = (*self._hooks, hooks)
            return replayed_logits(
                self.engine, clean.unrolled, self._edits_of(clean), batch_size=self.batch_size, hooks=every,
                metric=metric,
            )  # fmt: skip
        logits: list[Tensor] = []
        with self._hooked(hooks):
            done = self._run(items, None, None, None, False, logits)
        return {"logits": joined(logits), "run": done, "both": (joined(logits), done)}[return_type]

    @contextmanager
    def hooks(self, fwd_hooks: Hooks = (), *, positions: Role | None = None) -> Iterator[PrismModel]:
        """While open, functions are called in every run of the model and of its views; afterwards no longer.

        Args:
            fwd_hooks: see `run_with_hooks`.
            positions: see `run_with_hooks`.
        """
        with self._hooked(hook_set(self.hook_dict, self.hf.n_layers, fwd_hooks, (), positions)):
            yield self

    def cache_to_disk(
        self,
        items: Sequence[Item],
        folder: str | Path,
        names_filter: NamesFilter = None,
        *,
        positions: Role | None = None,
        shard_items: int | None = None,
        progress: bool = False,
    ) -> ActivationCache:
        """`run_with_cache` for more items than memory holds; `trace.disk.cache_to_disk` says everything about it."""
        return cache_to_disk(
            self, checked_items(items), folder, names_filter, positions=positions, shard_items=shard_items,
            progress=progress,
        )  # fmt: skip

    @overload
    def trace(
        self,
        items: Sequence[Item],
        *,
        run: Run | None = None,
        mode: Literal["held"] = "held",
        remote: Literal["local"] | None = None,
    ) -> NamedTracer: ...
    @overload
    def trace(self, items: Sequence[Item], *, mode: Literal["free"]) -> FreeTracer: ...
    def trace(
        self, items: Sequence[Item], *, run: Run | None = None, mode: str = "held", remote: str | None = None
    ) -> Any:
        """A plain nnsight trace over one forward of the whole sequences, in which hook names are attributes.

        Inside ``with model.trace(items) as tracer:`` names such as ``model.blocks[2].attn.hook_q`` or
        ``model.hook_latent`` are values to read, change in place or assign, in the order of the forward; see `at` for
        single positions. Latents are held, logits are there at every position, and ``tracer.run`` has the sequences.

        With ``mode="free"`` the block runs while the model unrolls its own latents: ``tracer.latent[k]`` is the vector
        of latent step k, ``[batch, d_model]``, to read or to assign, in the order of the steps, and what is assigned
        changes the steps after it and the answer. ``tracer.run`` is the finished run, after the block.

        Args:
            items: run in one batch.
            run: a finished run of them; it is made where it is not given.
            mode: ``"held"`` or ``"free"``.
            remote: ``"local"`` sends the block through bytes as for a server, and runs it here; see `Simulation`.

        Raises:
            EditError: edits of values or hooks are active, whose changes belong into the block; another run or trace of
                the model is open; or a step of a free trace was never reached, or is another step of some item.
            SettingError: another mode, or a finished run for a free trace.
        """
        edits = self.active_edits
        if self._hooks or any(not isinstance(edit.op, Structural) for edit in edits):
            raise EditError(
                f"a trace while {'hooks' if self._hooks else ', '.join(map(str, edits))} are active",
                needed="a model without edits of values and without hooks",
                cause="the block itself says what is changed",
                fix="use model.clean().trace(...), or run_with_hooks",
            )
        refuse_mode(mode, run)
        items, batch = checked_items(items), BatchEdits(edits, self.hf.n_layers, self.cfg.n_heads)
        require_turn(self.hf, "a trace")
        backend = backend_of(remote, self, mode)
        if mode == "free":
            return open_free_trace(self.engine, list(items), self.settings(), batch)
        finished = self.generate(items) if run is None else run.take(items)
        publish = partial(setattr, self._base or self, "_trace")
        return open_trace(self.engine, finished.unrolled, publish, batch.rules(), backend)
