"""The model users hold: generate, run_with_cache, and edited views that share its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from nnsight import NNsight
from torch import Tensor
from tqdm.auto import tqdm

from prismlens.cache import ActivationCache
from prismlens.errors import EditError, ItemError, SettingError, SiteError
from prismlens.interventions import Edit
from prismlens.models.loop import LoopSettings
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.positions import Role, resolve
from prismlens.sites import HEAD, NORMALIZED, expand, refuse_headless
from prismlens.trace.batch import Engine, every_position, replay_batch, run_batch
from prismlens.trace.editing import BatchEdits
from prismlens.trace.names import NamesFilter, matching_names
from prismlens.trace.prepared import needs_reference, prepared
from prismlens.trace.run import Run, merge_runs
from prismlens.trace.targets import latent_targets
from prismlens.types import Item
from prismlens.unrolled import take


@dataclass(eq=False)
class PrismModel:
    """A latent-reasoning model, its processor, and the edits that apply to every run.

    Args:
        hf: the transformers model, on its device, in eval mode.
        processor: turns items into prompts.
        name: how the model was asked for.
        revision: hash of its weights, for manifests.
        edits: in the order in which they apply; see `edited`.
        batch_size: items a batch. Float results depend on it in their last bits, so manifests record it.
        max_new_tokens: text tokens after the latents.
    """

    hf: LVRForConditionalGeneration
    processor: LVRProcessor
    name: str
    revision: str = ""
    edits: tuple[Edit, ...] = ()
    batch_size: int = 50
    max_new_tokens: int = 32
    _base: PrismModel | None = field(default=None, repr=False)
    _added: tuple[Edit, ...] = field(default=(), repr=False)
    """The edits that were given to this view and to those it was made from, without what a context had open then."""
    _wrapper: NNsight | None = field(default=None, repr=False)
    _opened: list[tuple[Edit, ...]] = field(default_factory=list, repr=False)

    @property
    def engine(self) -> Engine:
        """The model with its nnsight wrapper, which is made at first use and shared by all views."""
        owner = self._base or self
        if owner._wrapper is None:
            owner._wrapper = NNsight(self.hf)
        return Engine(self.hf, owner._wrapper, self.processor)

    @property
    def latent_site(self) -> str:
        """The site whose value at p - 1 is what is fed back at p: the LVR head's output, or the final norm's."""
        return HEAD if self.hf.has_head else NORMALIZED

    @property
    def active_edits(self) -> tuple[Edit, ...]:
        """The view's own edits, then those of every context that is open on it."""
        return (*self.edits, *(edit for opened in self._opened for edit in opened))

    def edited(self, *edits: Edit) -> PrismModel:
        """A view with these edits applied after the ones it has: same weights, same methods, the original untouched.

        The view is also a context manager: while it is open, the original runs with the edits too.

        Raises:
            SiteError, EditError: an edit cannot apply to this model, or the edits' modes differ.
        """
        every = (*self.active_edits, *edits)
        for edit in every:
            expand(edit.site, self.hf.n_layers)
            refuse_headless(edit.site, head=self.hf.has_head)
            _known_layers(edit, self.hf.n_layers)
        _one_mode(every)
        return replace(self, edits=every, _base=self._base or self, _added=(*self._added, *edits), _opened=[])

    def clean(self) -> PrismModel:
        """The same model without edits."""
        return replace(self, edits=(), _base=self._base or self, _added=(), _opened=[])

    def __enter__(self) -> PrismModel:
        if self._base is None:
            raise EditError(
                "a model without edits was opened as a context", needed="a view", fix="use corrupt(model, ...)"
            )
        _one_mode((*self._base.active_edits, *self._added))
        self._base._opened.append(self._added)
        return self._base

    def __exit__(self, *exc: object) -> None:
        assert self._base is not None
        self._base._opened.pop()

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
        instead, and the text is decoded anew after them.

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
        items = checked_items(items)
        settings = self.settings(latent_steps, max_new_tokens)
        edits = self.active_edits
        if needs_reference(edits) and reference is None:
            reference = self.clean().generate(items, latent_steps=latent_steps, max_new_tokens=max_new_tokens)
        shared = self._prepared(edits, items, reference, settings.latent_steps)
        held = None
        if reference is not None and any(edit.mode == "held" for edit in edits):
            held = take(reference.unrolled, reference.rows_of(items))
        runs = []
        for start in tqdm(
            range(0, len(items), self.batch_size), desc=self.name, disable=not progress, unit="batch", leave=False
        ):
            rows = slice(start, start + self.batch_size)
            clean = None if held is None else take(held, rows)
            fresh = replace(shared, touched={}, hidden={})
            runs.append(run_batch(self.engine, self.processor(items[rows]), settings, fresh, clean))
        donors = tuple(dict(shared.donors[edit]) for edit in edits if edit in shared.donors)
        return replace(merge_runs(runs), donors=donors, reference=reference)

    def run_with_cache(
        self,
        items: Sequence[Item],
        names_filter: NamesFilter = None,
        *,
        positions: Role | None = None,
        run: Run | None = None,
    ) -> tuple[Tensor, ActivationCache]:
        """Run the items, then replay the finished sequences in one forward and keep activations.

        Args:
            items: the items.
            names_filter: which sites to keep; see `NamesFilter`.
            positions: a role; every position that is not padding by default.
            run: a finished run of the same items under the same edits, to replay instead of running again.

        Returns:
            Logits at the selected positions, and the cache: ``[batch, pos, ...]`` where every item has equally many
            selected positions, else ``[n, ...]``.

        Raises:
            PrismlensError: the replay's states differ from those of the run by more than rounding.
        """
        items = checked_items(items)
        run = self.generate(items) if run is None else run.take(items)
        names = matching_names(names_filter, self.hf.n_layers, head=self.hf.has_head)
        if not int(run.steps_taken.max()):
            names = [name for name in names if name != "hook_latent"]
        edits = self.active_edits
        measured = any(edit.op.needs - {"targets"} for edit in edits)
        reference = run.reference
        if measured and reference is None:
            reference = self.clean().generate(items, latent_steps=run.latent_steps)
        shared = self._prepared(edits, items, reference, run.latent_steps)
        kept: dict[str, list[Tensor]] = {name: [] for name in (*names, "logits")}
        for start in range(0, len(items), self.batch_size):
            part = take(run.unrolled, slice(start, start + self.batch_size))
            values, logits = replay_batch(self.engine, part, replace(shared, touched={}, hidden={}), names, positions)
            for name, value in (*values.items(), ("logits", logits)):
                kept[name].append(value)
        where = every_position(run.unrolled) if positions is None else resolve(positions, run.unrolled)
        flat = {name: torch.cat(parts) for name, parts in kept.items()}
        with_logits = ActivationCache({"logits": flat.pop("logits")}, where, run.unrolled)
        return with_logits["logits"], ActivationCache(flat, where, run.unrolled)

    def settings(self, latent_steps: int | None = None, max_new_tokens: int | None = None) -> LoopSettings:
        """The loop's settings for this checkpoint.

        Raises:
            SettingError: a budget below 1, or a checkpoint without an end-of-sequence token.
        """
        generation = self.hf.generation_config
        eos = getattr(generation, "eos_token_id", None) or self.hf.config.text.eos_token_id
        ids = [eos] if isinstance(eos, int) else list(eos or [])
        if not ids:
            raise SettingError("the checkpoint names no end-of-sequence token", needed="eos_token_id in its config")
        tokens = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        return LoopSettings.of(self.hf.config, ids, latent_steps=latent_steps, max_new_tokens=tokens)

    def targets(self, items: Sequence[Item], steps: int | None = None) -> Float[Tensor, "item step d_model"]:
        """The image features that each item's latents are taught to resemble; see `slot_tokens` for which they are.

        Args:
            items: with boxes.
            steps: latents in a block; the checkpoint's own number by default.

        Raises:
            ItemError: some items have no box.
        """
        stages = self.settings(steps).stages_of(self.hf.config)
        starts = range(0, len(items), self.batch_size)
        parts = [latent_targets(self.hf, self.processor, items[i : i + self.batch_size], stages) for i in starts]
        return torch.cat(parts)

    def _prepared(
        self, edits: tuple[Edit, ...], items: Sequence[Item], reference: Run | None, steps: int
    ) -> BatchEdits:
        """Donors, targets, and clean values of the sites that the edits need, measured over the whole reference."""
        clean = self.clean()

        def read(names: list[str], positions: Role, run: Run) -> ActivationCache:
            return clean.run_with_cache(run.items, names, positions=positions, run=run)[1]

        return prepared(
            edits, items, self.hf.n_layers, reference=reference, read=read, targets=lambda: self.targets(items, steps)
        )


def checked_items(items: Sequence[Item]) -> Sequence[Item]:
    """The items, or an ItemError where there are none or two share an id."""
    ids = [item.id for item in items]
    repeated = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if not ids or repeated:
        raise ItemError(
            f"{len(ids)} items" + (f", of which several share the id {repeated[0]!r}" if repeated else ""),
            needed="at least one item, each with its own id",
            fix="pass a list through load_items, which fills in missing ids",
        )
    return items


def _known_layers(edit: Edit, n_layers: int) -> None:
    beyond = [layer for layer in getattr(edit.op, "layers", None) or () if layer >= n_layers]
    if beyond:
        raise SiteError(f"{edit} names layer {beyond[0]}", needed=f"layers from 0 to {n_layers - 1}")


def _one_mode(edits: Sequence[Edit]) -> None:
    modes = sorted({edit.mode for edit in edits})
    if len(modes) > 1:
        raise EditError(f"edits of the modes {' and '.join(modes)} together", needed="one mode for all edits")
