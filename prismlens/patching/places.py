"""The position axis of a sweep: what each place is called, and where it lies in every pair; knows no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from prismlens.errors import RoleError, SettingError
from prismlens.patching.runs import PairedRuns
from prismlens.positions import Role, resolve
from prismlens.unrolled import Segment, Unrolled


@dataclass(frozen=True, eq=False)
class Places:
    """The places of a sweep.

    Args:
        labels: what each is called.
        masks: its positions in every pair; none at all where the pair lacks the place.
    """

    labels: tuple[str, ...]
    masks: Bool[Tensor, "place pair pos"]


def places_of(runs: PairedRuns, positions: Role | Sequence[Role] | None) -> Places:
    """The places of a sweep over these pairs.

    Args:
        runs: the pairs.
        positions: a role or several: each is one place, all of its positions patched together. None: every position up
            to each pair's limit is a place of its own, named after its segment and its number there (``question[2]``);
            image tokens after their row and column in the grid (``image[row 1, column 4]``), so that places of images
            of different sizes lie above each other. A pair that lacks a place does not count there.

    A role's positions are those it names on the clean or on the corrupted side (they differ for ``image.box`` of an
    object that moves), up to the pair's limit: what lies behind it cannot matter.

    Raises:
        RoleError: a role is absent in some pair, or lies behind its limit.
        SettingError: no roles, or one twice.
    """
    if positions is None:
        return _every_position(runs)
    roles = [positions] if isinstance(positions, Role) else list(positions)
    labels = tuple(str(role) for role in roles)
    if not roles or len(set(labels)) < len(labels):
        raise SettingError(f"positions = [{', '.join(labels)}]", needed="different roles, at least one")
    return Places(labels, torch.stack([_mask(runs, role) for role in roles]))


def _mask(runs: PairedRuns, role: Role) -> Bool[Tensor, "pair pos"]:
    """Where a role lies in every pair, up to the limit."""
    for run in (runs.clean, runs.corrupted):
        resolve(role, run)
    # Masks first, then the cut: answer[-1] is the last of the whole answer.
    mask = role.mask(runs.clean)[:, : runs.width] | role.mask(runs.corrupted)[:, : runs.width]
    mask = mask & (torch.arange(runs.width, device=mask.device) <= runs.limit[:, None])
    behind = (~mask.any(1)).nonzero().flatten().tolist()
    if behind:
        ids = [runs.clean.items[row].id for row in behind]
        raise RoleError(
            f"the role {role} lies behind the last position that can be patched in {len(ids)} pairs: {ids[:5]}",
            needed="positions before the token in which the two answers first differ; in free mode prompt and latents",
            cause="a text such as 'red <answer> B' is decided at its first word",
            fix=f"choose prompt or latent; the last position that can be patched is {_last(runs, behind[0])} there",
        )
    return mask


def _last(runs: PairedRuns, row: int) -> str:
    """The name of the last position of a pair that can be patched."""
    return _label(_keys(runs.clean, row, int(runs.limit[row]))[-1][0])


def _every_position(runs: PairedRuns) -> Places:
    """One place for every position that some pair has up to its limit, in the order of the sequence."""
    run = runs.clean
    found: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
    for row in range(run.shape[0]):
        for key, column in _keys(run, row, int(runs.limit[row])):
            found.setdefault(key, []).append((row, column))
    masks = torch.zeros(len(found), run.shape[0], runs.width, dtype=torch.bool, device=run.device)
    for place, key in enumerate(sorted(found)):
        rows, columns = zip(*found[key], strict=True)
        masks[place, list(rows), list(columns)] = True
    return Places(tuple(_label(key) for key in sorted(found)), masks)


def _keys(run: Unrolled, row: int, limit: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """(number of the run of one segment, segment, first and second number in it) of every position of one row."""
    out = []
    part, before, counts = -1, -1, dict.fromkeys(Segment, 0)
    for column in range(limit + 1):
        segment = Segment(int(run.segments[row, column]))
        if segment == Segment.PAD:
            continue
        part, before = part + (segment != before), segment
        patch = run.patches[row, column].tolist()
        numbers = tuple(patch) if segment == Segment.IMAGE else (counts[segment], 0)
        counts[segment] += 1
        out.append(((part, int(segment), numbers[0], numbers[1]), column))
    return out


def _label(key: tuple[int, int, int, int]) -> str:
    """A place's name."""
    _, segment, first, second = key
    name = Segment(segment).name.lower()
    return f"image[row {first}, column {second}]" if segment == Segment.IMAGE else f"{name}[{first}]"
