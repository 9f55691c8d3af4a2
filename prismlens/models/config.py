"""The configurations of latent-reasoning models: an architecture's own, plus what the latent loop needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, no_type_check

from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from prismlens.errors import CheckpointError, RoleError
from prismlens.models.exits import DISTANCES, EXITS
from prismlens.models.heads import HEADS, NONE, RELEASED_TYPES, TextConfig
from prismlens.models.stages import check_stages, stages
from prismlens.models.tokens import BLOCK_TOKENS
from prismlens.models.visibility import Rule

ENTRIES = ("forced", "emitted", "none")


# transformers reads config.json through these classes and hides in their signatures that they take any keyword:
# run-time checks of the signature, on in tests, would refuse every folder.
@no_type_check
@dataclass(kw_only=True, repr=False)
class LatentConfig:
    """The latent block's tokens, budget and visibility: what a configuration holds beside its architecture's fields.

    ``model_type`` stays the architecture's: plain transformers reads the same folder as an ordinary model of it.

    Args:
        lvr_start_id, lvr_id, lvr_latent_end_id, lvr_end_id: token ids of the block's markers and of the slot.
        ctx_start_id, ctx_end_id, tgt_start_id, tgt_end_id, free_start_id, free_id, free_end_id: those of a block with
            several stages (P-LVR).
        latent_entry: ``"forced"`` (the prompt ends with the start marker of the first stage), ``"emitted"`` (the model
            writes it), ``"none"`` (a model without latents).
        latent_exit: ``"fixed"`` (always as many latents as the budget says), ``"end_token"`` (leave when the logits at
            a latent prefer an end marker) or ``"end_vector"`` (leave when a latent is near the learned end vector; see
            `exits.end_vector`). Under the last two the budget is the cap.
        latent_steps: latents in a block of one stage; not used where `latent_stages` is given.
        latent_close: token ids that the loop itself appends after the last latent of a block of one stage; empty when
            the model has to decode its own end marker.
        latent_stages: the stages of a block with several, a list of ``{"name": text, "start": id, "steps": n,
            "close": [ids]}``; see `stages.Stage`, and `stages.stages` for what holds where the list is empty.
        visibility: which queries may not see which keys, a list of ``{"query": role, "key": role, "layers": [...]}``
            (`layers` absent: every layer; ``"share": [low, high]``: in a share of the items alone, see `Rule`).
        lvr_head: ``"none"``, ``"simple"`` or ``"gated"``: what a state passes before it is fed back. A released
            configuration says whether there is one (true, false), and names it in `lvr_head_type`.
        lvr_head_type: ``"simple"`` or ``"glu"``, read where `lvr_head` is true.
        latent_end_token: the model has a learned end vector, ``lvr_latent_end_emb``, which is also the embedding of
            `lvr_latent_end_id`.
        latent_end_threshold: a latent whose distance to the end vector is below it ends its stage.
        latent_end_distance: ``"mse"``, ``"mae"`` or ``"cosine"``.
    """

    lvr_start_id: int | None = None
    lvr_id: int | None = None
    lvr_latent_end_id: int | None = None
    lvr_end_id: int | None = None
    ctx_start_id: int | None = None
    ctx_end_id: int | None = None
    tgt_start_id: int | None = None
    tgt_end_id: int | None = None
    free_start_id: int | None = None
    free_id: int | None = None
    free_end_id: int | None = None
    latent_entry: str = "forced"
    latent_exit: str = "fixed"
    latent_steps: int = 8
    latent_close: list[int] | tuple[int, ...] = ()
    latent_stages: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()
    visibility: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()
    lvr_head: bool | str = NONE
    lvr_head_type: str | None = None
    latent_end_token: bool = False
    latent_end_threshold: float = 0.02
    latent_end_distance: str = "mse"

    @property
    def text(self) -> TextConfig:
        """The language model's part."""
        return cast(Any, self).text_config

    @property
    def head(self) -> str:
        """The name of the LVR head in `HEADS`, whichever way the configuration spells it."""
        if self.lvr_head is True:
            kind = self.lvr_head_type or "simple"
            return RELEASED_TYPES.get(kind, kind)
        return NONE if self.lvr_head is False else self.lvr_head

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the markers that end a stage, of all stages together."""
        names = ("lvr_latent_end_id", "lvr_end_id", "ctx_end_id", "tgt_end_id")
        return tuple(getattr(self, name) for name in names if getattr(self, name) is not None)

    def check_latents(self) -> None:
        """Raise CheckpointError where the latent settings contradict each other or a marker's id is missing."""
        for name, value, allowed in (
            ("latent_entry", self.latent_entry, ENTRIES),
            ("latent_exit", self.latent_exit, EXITS),
            ("lvr_head", self.head, HEADS),
            ("latent_end_distance", self.latent_end_distance, DISTANCES),
        ):
            if value not in allowed:
                raise CheckpointError(
                    f"config has {name} = {value!r}",
                    needed=f"one of {', '.join(allowed)}",
                    cause="a misspelt value, or a checkpoint of a newer version of prismlens",
                    fix="correct config.json",
                )
        try:
            for entry in self.visibility:
                Rule.from_config(entry)
        except RoleError as error:
            raise CheckpointError(
                f"the config's visibility rules name an unknown role: {error.given}",
                needed=error.needed,
                cause="a misspelt role, or a checkpoint of a newer version of prismlens",
                fix="correct config.json",
            ) from error
        if self.latent_entry != "none":
            self._check_block()

    def _check_block(self) -> None:
        """The markers' ids are there and in the vocabulary, and the budget is a number of steps."""
        several = bool(self.latent_stages) or self.ctx_start_id is not None
        markers = ("lvr_id",) if several else ("lvr_start_id", "lvr_id", "lvr_end_id")
        missing = [n for n in markers if getattr(self, n) is None]
        if missing:
            raise CheckpointError(
                f"config lacks {', '.join(missing)}",
                needed="the token ids of the latent block's markers",
                cause="the checkpoint is a plain Qwen2.5-VL, never trained with latents",
                fix='set latent_entry to "none" to analyse it without latents',
            )
        if type(self.latent_steps) is not int or self.latent_steps < 1:
            raise CheckpointError(
                f"config has latent_steps = {self.latent_steps!r}",
                needed="a whole number of at least 1",
                cause="a config edited by hand",
                fix='correct config.json; for a model without latents set latent_entry to "none"',
            )
        optional = tuple(getattr(self, name) for name in BLOCK_TOKENS if getattr(self, name) is not None)
        for id_ in (*optional, *self.latent_close):
            if type(id_) is not int or not 0 <= id_ < self.text.vocab_size:
                raise CheckpointError(
                    f"config has the token id {id_!r} among the latent block's",
                    needed=f"whole numbers from 0 to {self.text.vocab_size - 1}, the vocabulary",
                    cause="embeddings that were not resized for the latent tokens, or a config edited by hand",
                    fix="save config.json and weights together",
                )
        if several and self.latent_close:
            raise CheckpointError(
                "config has latent_close and several stages",
                needed="the close of each stage in latent_stages",
                cause="latent_close is for a block of one stage",
                fix="leave latent_close out",
            )
        check_stages(stages(self), self.text.vocab_size)
        self._check_end_vector()

    def _check_end_vector(self) -> None:
        """The end vector is there where the exit rule needs it, and so is the id that it is the embedding of."""
        if self.latent_exit == "end_vector" and not self.latent_end_token:
            raise CheckpointError(
                'config has latent_exit = "end_vector" and latent_end_token = false',
                needed="a model with a learned end vector",
                cause="the checkpoint was trained without one",
                fix='choose "fixed" or "end_token"',
            )
        if self.latent_end_token and self.lvr_latent_end_id is None:
            raise CheckpointError(
                "config has latent_end_token and lacks lvr_latent_end_id",
                needed="the id whose embedding is the end vector",
                cause="a config edited by hand",
                fix="copy the id from the tokenizer",
            )


@no_type_check
class LVRConfig(LatentConfig, Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with latents."""


@no_type_check
class Qwen3LVRConfig(LatentConfig, Qwen3VLConfig):
    """Qwen3-VL's configuration with latents."""
