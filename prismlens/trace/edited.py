"""A model with its edits and hooks, the contexts that open them, and what a run of it needs; see `PrismModel`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from jaxtyping import Float
from nnsight import NNsight
from torch import Tensor

from prismlens.cache import ActivationCache, Readout
from prismlens.errors import EditError, SettingError
from prismlens.interventions import Edit
from prismlens.models.latent import LatentModel
from prismlens.models.loop import LoopSettings
from prismlens.models.processor import LVRProcessor
from prismlens.positions import Positions, Role
from prismlens.sites import HEAD, LATENT, UNEMBED_IN, Site, site_names
from prismlens.trace.batch import Engine, replay_batch
from prismlens.trace.caching import Wanted, cached, replay_in_batches
from prismlens.trace.cfg import ModelConfig
from prismlens.trace.checked import checked_items
from prismlens.trace.editing import BatchEdits
from prismlens.trace.gradients import Metric
from prismlens.trace.hooks import BatchHooks, HookSet
from prismlens.trace.named import NamedPlaces, OpenTrace
from prismlens.trace.prepared import measures, needs_reference, prepared
from prismlens.trace.provenance import edited_sites, provenance
from prismlens.trace.readout import readout_of
from prismlens.trace.run import Run
from prismlens.trace.running import run_in_batches
from prismlens.trace.skipping import shortened
from prismlens.trace.targets import ImageFeatures, image_features
from prismlens.trace.validity import check_edits, one_mode
from prismlens.trace.wiring import Wiring, check_wiring
from prismlens.types import Item
from prismlens.unrolled import Unrolled, take

Model = TypeVar("Model", bound="EditedModel")


@dataclass(eq=False)
class EditedModel(NamedPlaces):
    """A latent-reasoning model, its processor, and the edits and hooks that apply to every run; see `PrismModel`.

    Args:
        hf: the transformers model, on its device, in eval mode.
        processor: turns items into prompts.
        name: how the model was asked for.
        revision: hash of its weights, for manifests.
        edits: in the order in which they apply; see `edited`.
        batch_size: items a batch. Float results depend on it in their last bits, so manifests record it.
        max_new_tokens: text tokens after the latents.
    """

    hf: LatentModel
    processor: LVRProcessor
    name: str
    revision: str = ""
    edits: tuple[Edit, ...] = ()
    batch_size: int = 50
    max_new_tokens: int = 32
    _base: EditedModel | None = field(default=None, repr=False)
    _added: tuple[Edit, ...] = field(default=(), repr=False)
    """The edits that were given to this view and to those it was made from, without what a context had open then."""
    _wrapper: NNsight | None = field(default=None, repr=False)
    _opened: list[tuple[Edit, ...]] = field(default_factory=list, repr=False)
    _hooks: list[HookSet] = field(default_factory=list, repr=False)
    """Those of the open `hooks` contexts; views share the list with the model that they were made from."""
    _trace: OpenTrace | None = field(default=None, repr=False)
    """The open trace; kept by the model that has no base."""

    @property
    def engine(self) -> Engine:
        """The model with its nnsight wrapper, which is made at first use and shared by all views."""
        owner = self._base or self
        if owner._wrapper is None:
            owner._wrapper = NNsight(self.hf)
        return Engine(self.hf, owner._wrapper, self.processor)

    @property
    def cfg(self) -> ModelConfig:
        """The model's sizes, under TransformerLens' names."""
        return ModelConfig.of(self.hf.config)

    @property
    def hook_dict(self) -> Mapping[str, Site]:
        """Every hook name of this model, in forward order, with its axes, its module, and what it needs."""
        vision = self.hf.n_vision_layers
        names = site_names(self.hf.n_layers, head=self.hf.has_head, n_vision_layers=vision, every=True)
        served = [name for name in names if not self.hf.refuses(name)]
        return MappingProxyType({name: self.engine.site(name) for name in served})

    @property
    def readout(self) -> Readout:
        """The weights that caches decompose with, by reference."""
        return readout_of(self.hf, self.revision)

    @property
    def opens(self) -> tuple[int, ...]:
        """The ids that open a stage of latents."""
        return tuple(stage.start for stage in self.settings().stages_of(self.hf.config))

    def check(self) -> Wiring:
        """Check on a made-up run that every site is where its name says; the edits of this view play no part.

        Raises:
            WiringError: the site and layer that are not, and what is wrong there.
        """
        found = check_wiring(self.hf, self.engine.wrapper, self.processor, self.settings())
        found.require()
        return found

    @property
    def latent_site(self) -> str:
        """The site whose value at p - 1 is what is fed back at p: the LVR head's output, or the final norm's."""
        return HEAD if self.hf.has_head else UNEMBED_IN

    @property
    def active_edits(self) -> tuple[Edit, ...]:
        """The view's own edits, then those of every context that is open on it."""
        return (*self.edits, *(edit for opened in self._opened for edit in opened))

    def edited(self: Model, *edits: Edit) -> Model:
        """A view with these edits applied after the ones it has: same weights, same methods, the original untouched.

        The view is also a context manager: while it is open, the original runs with the edits too.

        Raises:
            SiteError, EditError: an edit cannot apply to this model, or the edits' modes differ.
        """
        every = (*self.active_edits, *edits)
        check_edits(every, self.hf)
        return replace(self, edits=every, _base=self._base or self, _added=(*self._added, *edits), _opened=[])

    def clean(self: Model) -> Model:
        """The same model without edits and without hooks."""
        return replace(self, edits=(), _base=self._base or self, _added=(), _opened=[], _hooks=[])

    def __enter__(self) -> EditedModel:
        if self._base is None:
            raise EditError(
                "a model without edits was opened as a context", needed="a view", fix="use corrupt(model, ...)"
            )
        one_mode((*self._base.active_edits, *self._added))
        self._base._opened.append(self._added)
        return self._base

    def __exit__(self, *exc: object) -> None:
        assert self._base is not None
        self._base._opened.pop()

    def settings(self, latent_steps: int | None = None, max_new_tokens: int | None = None) -> LoopSettings:
        """The loop's settings for this checkpoint.

        Raises:
            SettingError: a budget below 1 or beyond what the model's positions can hold, or a checkpoint without an
                end-of-sequence token.
        """
        generation = self.hf.generation_config
        eos = getattr(generation, "eos_token_id", None) or getattr(self.hf.config.text, "eos_token_id", None)
        ids = [eos] if isinstance(eos, int) else list(eos or [])
        if not ids:
            raise SettingError("the checkpoint names no end-of-sequence token", needed="eos_token_id in its config")
        most = int(self.hf.config.text.max_position_embeddings)
        if latent_steps is not None and latent_steps >= most:
            raise SettingError(
                f"latent_steps = {latent_steps}", needed=f"fewer than the {most} positions that the model was made for"
            )
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
        return torch.stack([found.targets for found in self.image_features(items, steps)])

    def image_features(self, items: Sequence[Item], steps: int | None = None) -> list[ImageFeatures]:
        """The features of each item's whole image, and which of them are its latents' targets; see `targets`."""
        stages = self.settings(steps).stages_of(self.hf.config)
        starts = range(0, len(items), self.batch_size)
        parts = [image_features(self.hf, self.processor, items[i : i + self.batch_size], stages) for i in starts]
        return [found for part in parts for found in part]

    def opened(self) -> OpenTrace:
        """The trace that is open.

        Raises:
            EditError: none is.
        """
        found = (self._base or self)._trace
        if found is None:
            raise EditError(
                "a hook name was used as an attribute outside a trace", needed="an open trace",
                fix="write `with model.trace(items):`, or use run_with_cache or run_with_hooks",
            )  # fmt: skip
        return found

    def _run(
        self,
        items: Sequence[Item],
        latent_steps: int | None = None,
        max_new_tokens: int | None = None,
        reference: Run | None = None,
        progress: bool = False,
        logits: list[Tensor] | None = None,
    ) -> Run:
        """See `PrismModel.generate`; `logits` is given those of every batch."""
        items = checked_items(items)
        edits = self.active_edits
        settings = shortened(self.settings(latent_steps, max_new_tokens), self.hf.config, edits)
        if needs_reference(edits) and reference is None:
            reference = self.clean()._run(items, latent_steps, max_new_tokens)
        shared = self._prepared(edits, items, reference, settings.latent_steps)
        held = None
        if reference is not None and any(edit.mode == "held" for edit in edits):
            held = take(reference.unrolled, reference.rows_of(items))
        run = run_in_batches(
            self.engine,
            items,
            settings,
            shared,
            batch_size=self.batch_size,
            held=held,
            hooks=tuple(self._hooks),
            logits=logits,
            label=self.name if progress else None,
        )
        donors = tuple(dict(shared.donors[edit]) for edit in edits if edit in shared.donors)
        return replace(run, donors=donors, reference=reference)

    def _edits_of(self, run: Run) -> BatchEdits:
        """The active edits as they were in a finished run, for replaying it."""
        reference = run.reference
        if reference is None and any(measures(edit) for edit in self.active_edits):
            reference = self.clean()._run(run.items, run.latent_steps)
        return self._prepared(self.active_edits, run.items, reference, run.latent_steps)

    def _prepared(
        self, edits: tuple[Edit, ...], items: Sequence[Item], reference: Run | None, steps: int
    ) -> BatchEdits:
        """Donors, targets, and clean values of the sites that the edits need, measured over the whole reference."""
        clean = self.clean()

        def read(names: list[str], positions: Role, run: Run) -> ActivationCache:
            return clean._cached(run, names, Wanted(run.items, positions, logits=False))[1]

        return prepared(
            edits, items, self.hf.n_layers, self.hf.config.text.num_attention_heads, opens=self.opens,
            reference=reference, read=read, targets=lambda: self.targets(items, steps),
        )  # fmt: skip

    def _cached(
        self, run: Run, names: list[str], wanted: Wanted, stop: int | None = None, metric: Metric | None = None
    ) -> tuple[Tensor, ActivationCache]:
        """Logits and activations of a finished run, replayed under the active edits and hooks."""
        edits = self._edits_of(run)
        # A model that never came to its latents has no vectors that were fed back.
        names = [name for name in names if name != LATENT or int(run.steps_taken.max())]

        def replay(part: Unrolled, where: Positions) -> tuple[dict[str, Tensor], Tensor]:
            fresh, hooks = replace(edits, touched={}, hidden={}), BatchHooks(tuple(self._hooks))
            return replay_batch(
                self.engine, part, fresh, names, where, hooks=hooks, metric=metric, stop_at_layer=stop,
                heads=wanted.heads, with_logits=wanted.logits,
            )  # fmt: skip

        values, logits = replay_in_batches(run.unrolled, self.batch_size, wanted, replay)
        about = provenance(self, names, wanted.positions, latent_steps=run.latent_steps)
        about |= {} if wanted.heads is None else {"heads": list(wanted.heads)}
        written = edited_sites(self.active_edits, self.hf.n_layers)
        return cached(values, logits, run.unrolled, wanted, readout=self.readout, manifest=about, edited=written)

    @contextmanager
    def _hooked(self, hooks: HookSet) -> Iterator[None]:
        """While open, the hooks are called in every run."""
        self._hooks.append(hooks)
        try:
            yield
        finally:
            self._hooks.remove(hooks)
