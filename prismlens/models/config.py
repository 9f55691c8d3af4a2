"""The configuration of a latent-reasoning model: Qwen2.5-VL's, plus what the latent loop needs to know."""

from __future__ import annotations

from typing import Any, no_type_check

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig

from prismlens.errors import CheckpointError, RoleError
from prismlens.models.visibility import Rule

ENTRIES = ("forced", "emitted", "none")
EXITS = ("fixed", "end_token")


# transformers reads config.json through this class and hides in its signature that it takes any keyword: run-time
# checks of the signature, on in tests, would refuse every folder.
@no_type_check
class LVRConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with the latent block's tokens, budget and visibility.

    ``model_type`` stays ``qwen2_5_vl``: plain transformers reads the same folder as an ordinary Qwen2.5-VL.

    Args:
        lvr_start_id, lvr_id, lvr_latent_end_id, lvr_end_id: token ids of the block's markers and of the slot.
        latent_entry: ``"forced"`` (the prompt ends with the start marker), ``"emitted"`` (the model writes it),
            ``"none"`` (a model without latents).
        latent_exit: ``"fixed"`` (always `latent_steps` latents) or ``"end_token"`` (leave when the logits at a
            latent prefer an end marker; `latent_steps` is then the cap).
        latent_steps: latents in a block.
        latent_close: token ids that the loop itself appends after the last latent; empty when the model has to
            decode its own end marker.
        visibility: which queries may not see which keys, a list of ``{"query": role, "key": role, "layers": [...]}``
            (`layers` absent: every layer).
    """

    lvr_start_id: int | None = None
    lvr_id: int | None = None
    lvr_latent_end_id: int | None = None
    lvr_end_id: int | None = None
    latent_entry: str = "forced"
    latent_exit: str = "fixed"
    latent_steps: int = 8
    latent_close: list[int] | tuple[int, ...] = ()
    visibility: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> Qwen2_5_VLTextConfig:
        """The language model's part."""
        assert isinstance(self.text_config, Qwen2_5_VLTextConfig)
        return self.text_config

    def check_latents(self) -> None:
        """Raise CheckpointError where the latent settings contradict each other or a marker's id is missing."""
        for name, value, allowed in (
            ("latent_entry", self.latent_entry, ENTRIES),
            ("latent_exit", self.latent_exit, EXITS),
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
        staged = [n for n in ("ctx_start_id", "tgt_start_id") if getattr(self, n, None) is not None]
        if staged and self.latent_entry != "none":
            raise CheckpointError(
                f"config has {', '.join(staged)}: a block with several stages (P-LVR)",
                needed="one block of latents between lvr_start and lvr_end",
                cause="models with context, free and target stages are not served by this version",
                fix="load a model without stages",
            )
        missing = [n for n in ("lvr_start_id", "lvr_id", "lvr_end_id") if getattr(self, n) is None]
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
        optional = () if self.lvr_latent_end_id is None else (self.lvr_latent_end_id,)
        for id_ in (self.lvr_start_id, self.lvr_id, self.lvr_end_id, *optional, *self.latent_close):
            if type(id_) is not int or not 0 <= id_ < self.text.vocab_size:
                raise CheckpointError(
                    f"config has the token id {id_!r} among the latent block's",
                    needed=f"whole numbers from 0 to {self.text.vocab_size - 1}, the vocabulary",
                    cause="embeddings that were not resized for the latent tokens, or a config edited by hand",
                    fix="save config.json and weights together",
                )
