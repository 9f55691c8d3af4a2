"""An edit as data: an operation, where in the sequence, where in the network, in which kind of run; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismlens.errors import EditError
from prismlens.interventions import edit_html, edit_json
from prismlens.interventions.cut import Cut
from prismlens.interventions.operation import Operation, Structural, one_of
from prismlens.interventions.oracle import Oracle
from prismlens.interventions.skip import Skip
from prismlens.interventions.source import Source
from prismlens.positions import Role, latent

MODES = ("free", "held")
SITE = "hook_latent"
"""The vector that is fed back: the paper's site, and the default."""


@dataclass(frozen=True)
class Edit:
    """One change to a model's computation: frozen, hashable, and complete (it can be saved and repeated).

    Args:
        op: an operation, for example ``Zero()``, or a structural one, for example ``DeleteKV()``.
        positions: where in the sequence. `Cut` names its own positions and leaves the default here.
        site: where in the network, a hook name. Structural operations act on attention and leave the default here.
        mode: ``"free"``: the model goes on from the edited value, later latents change too, as a user would see.
            ``"held"``: a replay of the finished sequence, the other latents stay as they were.
        seed: of the operation's randomness and of the choice of donors.

    Raises:
        EditError: the parts contradict each other, or are not what they should be.
    """

    op: Operation | Structural
    positions: Role = latent
    site: str = SITE
    mode: str = "free"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.op, Operation | Structural):
            raise EditError(
                f"op={self.op!r}",
                needed="an operation",
                cause="the class was given for an instance of it, or a name",
                fix="write for example op=Zero() or op=Noise(1.0, unit='std')",
            )
        if not isinstance(self.positions, Role):
            raise EditError(
                f"{self.op} with positions={self.positions!r}",
                needed="a role",
                cause="the role's text was given for the role, or no positions at all",
                fix="write prismlens.latent, or positions.parse(text)",
            )
        if not isinstance(self.site, str) or not self.site.strip():
            raise EditError(f"site={self.site!r}", needed="a hook name", fix='write for example "hook_latent"')
        one_of("mode", self.mode, MODES)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise EditError(f"seed={self.seed!r}", needed="a whole number")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        """An EditError where a part is given that the operation would silently ignore."""
        if isinstance(self.op, Structural) and self.site != SITE:
            raise EditError(
                f"{self.op} at the site {self.site!r}",
                needed="no site",
                cause="a structural operation acts on attention, not on the value at a site",
                fix="leave `site` out" + ("; choose layers in Cut(layers=...)" if isinstance(self.op, Cut) else ""),
            )
        if isinstance(self.op, Oracle) and self.site != SITE:
            raise EditError(
                f"{self.op} at the site {self.site!r}",
                needed=f"the site {SITE!r}",
                cause="image features are what latents are taught to resemble; they say nothing about other sites",
                fix="leave `site` out",
            )
        if isinstance(self.op, Cut) and self.positions != latent:
            raise EditError(
                f"{self.op} with positions={self.positions}",
                needed="no positions",
                cause="Cut names its own positions",
                fix="leave `positions` out; use Cut(to=..., by=...)",
            )
        if isinstance(self.op, Skip) and self.positions != latent:
            raise EditError(
                f"{self.op} with positions={self.positions}",
                needed="no positions",
                cause="Skip takes the last latents of the block",
                fix="leave `positions` out; Skip(n) says how many",
            )

    def to_json(self) -> str:
        """The edit as JSON text, with a format version; `from_json` gives an equal edit back.

        Of a `Patch` it holds the name and the hash of the source, not its values.
        """
        return edit_json.dumps(self._record())

    @classmethod
    def from_json(cls, text: str, *, sources: Sequence[Source] = ()) -> Edit:
        """The edit that `to_json` wrote.

        Args:
            text: the JSON.
            sources: where a `Patch` finds its values again, by name and hash. Without its source the edit is equal to
                the one that was written, and a model refuses to run it.

        Raises:
            EditError: not JSON, another format version, unknown or missing keys, or values that are refused.
        """
        return cls(**edit_json.loads(text, sources))

    def to_yaml(self) -> str:
        """The edit as YAML text, with the same content as `to_json`."""
        return edit_json.dumps_yaml(self._record())

    @classmethod
    def from_yaml(cls, text: str, *, sources: Sequence[Source] = ()) -> Edit:
        """The edit that `to_yaml` wrote; see `from_json`."""
        return cls(**edit_json.loads_yaml(text, sources))

    def _record(self) -> dict[str, object]:
        return edit_json.to_record(self.op, self.positions, self.site, self.mode, self.seed)

    def _repr_html_(self) -> str:
        """The parts and the operation's question as a table, for notebooks."""
        where = None if isinstance(self.op, Cut | Skip) else str(self.positions)
        site = None if isinstance(self.op, Structural) else self.site
        return edit_html.table(self.op, where, site, self.mode, self.seed)

    def __str__(self) -> str:
        where = "" if isinstance(self.op, Cut | Skip) else f" on {self.positions}"
        site = "" if isinstance(self.op, Structural) else f" at {self.site}"
        return f"{self.op}{site}{where} ({self.mode}, seed {self.seed})"
