"""How a run decodes: budgets, exit rule, what is forced, what ends a row; knows no model but its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prismlens.errors import SettingError
from prismlens.models.config import LatentConfig
from prismlens.models.stages import LATENT, Stage, stages


@dataclass(frozen=True)
class LoopSettings:
    """How a run decodes.

    Args:
        latent_steps: latents in a block, over all its stages (the cap, when the exit rule is not ``"fixed"``).
        max_new_tokens: text tokens that the model chooses; latents and forced ids do not count.
        latent_exit: a name of `exits.EXITS`.
        latent_close: ids forced after the last latent of a block of one stage.
        eos_ids: ids that end a row.
        stages: of a block with several stages; empty for the one stage that the fields above describe.
    """

    latent_steps: int
    max_new_tokens: int
    latent_exit: str
    latent_close: tuple[int, ...]
    eos_ids: tuple[int, ...]
    stages: tuple[Stage, ...] = ()

    @classmethod
    def of(
        cls, config: LatentConfig, eos_ids: Sequence[int], *, latent_steps: int | None = None, max_new_tokens: int
    ) -> LoopSettings:
        """The settings of a checkpoint, with an explicit latent budget where one is given.

        A number cannot say how latents are split over several stages: there only the checkpoint's own total is taken.

        Raises:
            SettingError: a budget below 1, or another one than the checkpoint's for a block with several stages.
        """
        steps = config.latent_steps if latent_steps is None else latent_steps
        if config.latent_entry != "none" and steps < 1:
            raise SettingError(
                f"latent_steps = {steps}",
                needed="at least 1",
                cause="0 latents is another model: the block would be empty",
                fix="to remove latents compare with a model trained without them (tiny/sft)",
            )
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens = {max_new_tokens}", needed="at least 1")
        found = stages(config) if config.latent_stages or config.ctx_start_id is not None else ()
        if len(found) == 1 and latent_steps is not None:
            found = (replace(found[0], steps=latent_steps),)
        total = sum(stage.steps for stage in found)
        if found and latent_steps not in (None, total):
            raise SettingError(
                f"latent_steps = {latent_steps} for the stages "
                + ", ".join(f"{stage.name} ({stage.steps})" for stage in found),
                needed=f"no number, or their total of {total}",
                cause="one number does not say how many latents each stage has",
                fix="change steps in latent_stages of the model's config",
            )
        steps = total if found else steps
        return cls(steps, max_new_tokens, config.latent_exit, tuple(config.latent_close), tuple(eos_ids), found)

    def stages_of(self, config: LatentConfig) -> tuple[Stage, ...]:
        """The stages that a run opens, in order; none for a model without latents."""
        if config.latent_entry == "none" or (config.lvr_start_id is None and not self.stages):
            return ()
        if self.stages:
            return self.stages
        assert config.lvr_start_id is not None
        return (Stage(LATENT, config.lvr_start_id, self.latent_steps, self.latent_close),)
