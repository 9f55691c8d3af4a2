"""One exception family whose every message says what was given, what was needed, the likely cause and the fix."""

from __future__ import annotations


class PrismlensError(Exception):
    """Base of every error that prismlens raises on purpose.

    Args:
        given: what the caller supplied, with its value.
        needed: what would have been accepted.
        cause: the likely reason, when one is known.
        fix: the next thing to do.
    """

    def __init__(self, given: str, *, needed: str = "", cause: str = "", fix: str = "") -> None:
        self.given, self.needed, self.cause, self.fix = given, needed, cause, fix
        labelled = (("needed", needed), ("likely cause", cause), ("fix", fix))
        super().__init__("\n".join([given, *(f"  {label}: {text}" for label, text in labelled if text)]))


class ItemError(PrismlensError, ValueError):
    """An item cannot be used: its image, boxes, options or answer are not valid."""


class RoleError(PrismlensError, ValueError):
    """A role is unknown, or names no position in some item."""


class SiteError(PrismlensError, ValueError):
    """A site (hook name) or layer does not exist in this model."""


class WiringError(PrismlensError, RuntimeError):
    """A model's sites are not where their names say."""


class EditError(PrismlensError, ValueError):
    """An edit is contradictory, or cannot apply where it was asked to."""


class DonorError(PrismlensError, ValueError):
    """No donor satisfies the requested policy for some item."""


class CheckpointError(PrismlensError, ValueError):
    """A model folder is missing, incomplete, unsafe, or not a latent-reasoning checkpoint."""


class ResultsError(PrismlensError, ValueError):
    """Saved results cannot be written, read, or compared."""


class SettingError(PrismlensError, ValueError):
    """A setting has a value outside its range."""


class TrainingError(PrismlensError, RuntimeError):
    """Training cannot start, go on, or be resumed."""
