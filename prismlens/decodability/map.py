"""The map of what a linear probe reads at every layer and role, its controls and its gap; says nothing about use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from prismlens.decodability.gap import gap_frame
from prismlens.decodability.states import FINAL, Place, read_states
from prismlens.errors import ResultsError, SettingError
from prismlens.markup import block, table, title
from prismlens.positions import Role, answer
from prismlens.probes import Cell, Protocol, evaluate, map_p
from prismlens.probes.protocol import protocol_of
from prismlens.probes.table import place_line
from prismlens.probes.targets import item_column, without_rare
from prismlens.results import Results, environment_manifest
from prismlens.trace import PrismModel
from prismlens.types import Item

SOURCE = str(answer.source)
"""The paper's position (a)."""
N_RESAMPLES = 2_000
"""Bootstrap samples of a map, which has hundreds of places."""


@dataclass(frozen=True, eq=False)
class Decodability:
    """The map: per-item rows, and every statistic computed from them.

    Args:
        results: one row an item and place: ``item, group, role, depth, site, label, predicted, correct, logprob`` (of
            the label, nats, held out), ``control`` (share of the control tasks that were right), ``fold``. The manifest
            has for each place the accuracies under shuffled labels, the C of each fold and the online code's length.
        seed: of the bootstrap.
    """

    results: Results
    seed: int = 0

    @property
    def rows(self) -> pd.DataFrame:
        """The per-item rows."""
        return self.results.rows

    @property
    def left_out(self) -> dict[str, str]:
        """Roles that are not on the map because no item has them, each with the reason; empty where all are there."""
        return dict(self.results.manifest["left_out"])

    @property
    def dropped(self) -> dict[str, str]:
        """Ids of items that were left out on request, each with the reason."""
        return dict(self.results.manifest["dropped"])

    @property
    def places(self) -> tuple[Place, ...]:
        """The cells of the map, by role and depth."""
        return tuple(Place(one["role"], one["depth"], one["site"]) for one in self.results.manifest["places"])

    def frame(self, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
        """One line a place, by role and depth; ``frame.attrs["left_out"]`` names the roles that are not there, and why.

        Columns: those of `place_line`; ``p_map`` (corrected over the map, by the highest accuracy that each shuffle
        reaches anywhere); ``compression`` (of the online code); ``varying`` (features that vary at all: where it is 0
        the probe can only guess the majority); ``C`` (median over folds).
        """
        by_place = self._by_place()
        lines, observed, nulls = [], {}, {}
        for place, about in zip(self.places, self.results.manifest["places"], strict=True):
            null = np.asarray(about["null"], dtype=np.float64)
            line = place_line(by_place[place], null, n_resamples=n_resamples, seed=self.seed)
            observed[str(place)], nulls[str(place)] = line["accuracy"], null
            line |= {"compression": about["uniform_nats"] / about["code_nats"], "varying": about["varying"]}
            lines.append({**asdict(place), **line, "C": float(np.median(about["C"]))})
        frame = pd.DataFrame(lines)
        frame.insert(frame.columns.tolist().index("p") + 1, "p_map", list(map_p(observed, nulls).values()))
        frame.attrs["left_out"] = self.left_out
        return frame

    def gap(self, *, n_resamples: int = N_RESAMPLES) -> pd.DataFrame:
        """G = accuracy at the answer's source, after the final norm, minus accuracy at a latent; one line a reading.

        ``"paper"`` reads the latent as published: the final norm's output at the last latent, which is never fed back.
        ``"injected"`` reads each latent as it was fed in (depth 0) and after every block. ``"best"`` is the injected
        place where most is read: the highest of many, so that its gap is if anything too small; its interval chooses
        anew in every resample. Columns ``reading, role, depth, site, a, b, gap, low, high`` (bootstrap over groups,
        paired by item) and ``p``.

        Raises:
            SettingError: the map has no answer source, or no latents.
        """
        right = {place: rows.correct.to_numpy(dtype=float) for place, rows in self._by_place().items()}
        latents = {place: own for place, own in right.items() if place.role.startswith("latent[")}
        source = [place for place in right if (place.role, place.site) == (SOURCE, FINAL)]
        if not source or not latents:
            raise SettingError(
                f"a map of the roles {', '.join(dict.fromkeys(place.role for place in right))} has no gap",
                needed=f"{SOURCE} and single latents",
                cause="; ".join(f"{role}: {why}" for role, why in self.left_out.items()) or "they were not asked for",
            )
        groups = self._by_place()[source[0]].group
        return gap_frame(right[source[0]], latents, groups, n_resamples=n_resamples, seed=self.seed)

    def _repr_html_(self) -> str:
        means = self.rows.groupby(["role", "depth"], sort=False).correct.mean().unstack()
        about = self.results.manifest
        note = f"{about['model']}, {len(about['items'])} items, target {about['target']}, held-out accuracy by depth"
        lines = [
            [role, *(f"{value:.3f}" for value in line)] for role, line in zip(means.index, means.values, strict=True)
        ]
        return block(title("Decodability", note), table(["role", *map(str, means.columns)], lines, shown=len(lines)))

    def save(self, folder: str | Path) -> Path:
        """Write rows and manifest; see `Results.save`."""
        return self.stored().save(folder)

    def stored(self) -> Results:
        """What `save` writes and `load` reads: the rows, and a manifest that has the seed too."""
        return Results(self.rows, {**self.results.manifest, "decodability": {"seed": self.seed}})

    @classmethod
    def load(cls, folder: str | Path) -> Decodability:
        """Read back what `save` wrote; every statistic is recomputed from the rows."""
        results = Results.load(folder)
        settings = results.manifest.get("decodability")
        if not isinstance(settings, dict):
            raise ResultsError(f"{str(folder)!r} holds other results", needed="a saved decodability map")
        return cls(results, **settings)

    def _by_place(self) -> dict[Place, pd.DataFrame]:
        """The rows of each place."""
        grouped = cast(Iterable[tuple[tuple[str, str], pd.DataFrame]], self.rows.groupby(["role", "site"]))
        by_name = {(str(role), str(name)): rows for (role, name), rows in grouped}
        return {place: by_name[place.role, place.site] for place in self.places}


def decodability(
    model: PrismModel,
    items: Sequence[Item],
    *,
    target: str = "answer",
    layers: Sequence[int] | None = None,
    roles: Sequence[Role] | None = None,
    protocol: str | Protocol = "fair",
    nuisance: str | None = "question",
    n_permutations: int = 99,
    n_controls: int = 5,
    seed: int = 0,
    on_missing: str = "raise",
    on_rare: str = "raise",
    jobs: int | None = None,
    progress: bool = False,
) -> Decodability:
    """Probe every layer at every role for a label, with controls, under one set of folds.

    Args:
        model: the model; its edits apply.
        items: those that share a scene share a group.
        target: ``"answer"`` (the letter), ``"content"`` (the right option's text), another field, or a column of meta.
        layers: blocks whose output is read, all by default; embeddings and the final norm's output are always read.
        roles: see `read_states`.
        protocol: see `evaluate`.
        nuisance: field or column whose values get one random label each in the control task; None: each item its own.
        n_permutations: shuffles for p, each through the whole pipeline; see `evaluate` for this and the next.
        n_controls: control tasks.
        seed: of folds, controls, shuffles and bootstrap.
        on_missing: see `read_states`.
        on_rare: for classes with fewer members than folds: ``"raise"``, or ``"drop"`` to leave their items out.
        jobs: threads of the probes; the numbers do not depend on it.
        progress: show bars.

    Raises:
        SettingError: a label is missing; see also `evaluate`.
        RoleError: see `read_states`.
        SiteError: see `read_states`.
    """
    rule = protocol_of(protocol)
    kept, rare = without_rare(items, item_column(items, target), rule.folds, on_rare)
    states = read_states(model, kept, layers=layers, roles=roles, on_missing=on_missing, progress=progress)
    cells = evaluate(
        {str(place): values for place, values in states.values.items()},
        item_column(states.items, target), [item.group for item in states.items],
        nuisance=None if nuisance is None else item_column(states.items, nuisance), protocol=rule,
        n_permutations=n_permutations, n_controls=n_controls, seed=seed, ids=[item.id for item in states.items],
        jobs=jobs, progress=progress,
    )  # fmt: skip
    rows = [_rows(states.items, place, cells[str(place)]) for place in states.values]
    manifest = {
        "model": model.name, "weights": model.revision, "dtype": str(model.hf.dtype), "device": str(model.hf.device),
        "batch_size": model.batch_size, "model_edits": [edit.to_json() for edit in model.active_edits],
        "target": target, "protocol": asdict(rule), "nuisance": nuisance, "n_permutations": n_permutations,
        "n_controls": n_controls, "seed": seed, "items": [item.id for item in states.items],
        "left_out": dict(states.left_out), "dropped": {**rare, **states.dropped},
        "places": [_about(place, cells[str(place)]) for place in states.values], "environment": environment_manifest(),
    }  # fmt: skip
    return Decodability(Results(pd.concat(rows, ignore_index=True), manifest), seed)


def _rows(items: Sequence[Item], place: Place, cell: Cell) -> pd.DataFrame:
    """One row an item."""
    return pd.DataFrame(
        {
            "item": [item.id for item in items], "group": [item.group for item in items], **asdict(place),
            "label": [str(cell.classes[code]) for code in cell.codes],
            "predicted": [str(cell.classes[code]) for code in cell.predicted], "correct": cell.correct,
            "logprob": cell.logprobs[np.arange(len(items)), cell.codes], "control": cell.control, "fold": cell.folds,
        }
    )  # fmt: skip


def _about(place: Place, cell: Cell) -> dict[str, Any]:
    """What the statistics of a place need beside its rows."""
    return {
        **asdict(place), "varying": cell.varying, "C": cell.strengths.tolist(), "null": cell.null.tolist(),
        "code_nats": cell.description.nats, "uniform_nats": cell.description.uniform,
    }  # fmt: skip
