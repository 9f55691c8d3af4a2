"""Functions that users hang on sites: which, when they are called, and whether each was as often as it should be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from prismlens.errors import EditError, SiteError
from prismlens.positions import Role, resolve
from prismlens.sites import LATENT, Site
from prismlens.trace.forward import Backward, Call
from prismlens.trace.names import matching_sites
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled

HookFunction: TypeAlias = Callable[..., Tensor | None]
"""``fn(value, *, hook)``: returns None, or a tensor of the same shape and dtype that takes the value's place."""
Hooks: TypeAlias = Sequence[tuple[str | Callable[[str], bool], HookFunction]]
"""Pairs of a name (or a predicate of names) and a function."""


@dataclass(frozen=True, eq=False)
class Hook:
    """What a hook function is told besides the value.

    Args:
        name: of the site; the gradient's ends in ``_grad``.
        unrolled: the sequences so far, this forward's columns included.
        n_columns: how many columns, the last ones, this forward runs.
        forward: the forward's number in its run: 0 is the prefill, 1 the first column after the prompt, ...
    """

    name: str
    unrolled: Unrolled
    n_columns: int
    forward: int

    def layer(self) -> int:
        """The number of the block.

        Raises:
            SiteError: the site lies outside blocks.
        """
        numbers = [part for part in self.name.split(".") if part.isdigit()]
        if not numbers:
            raise SiteError(f"hook.layer() at {self.name!r}", needed="a site inside a block")
        return int(numbers[0])

    @property
    def items(self) -> tuple[Item, ...]:
        """The items of the batch, in the order of the rows."""
        return self.unrolled.items

    @property
    def columns(self) -> slice:
        """The columns of the sequences that this forward runs: positions of the value, in their order."""
        width = self.unrolled.shape[1]
        return slice(width - self.n_columns, width)


@dataclass(frozen=True, eq=False)
class HookSet:
    """Hooks with their names resolved.

    Args:
        forward: called with values, in this order at one site.
        backward: called with gradients.
        positions: what the functions are given, one row a position; None is the whole value.
    """

    forward: tuple[tuple[Site, HookFunction], ...] = ()
    backward: tuple[tuple[Site, HookFunction], ...] = ()
    positions: Role | None = None

    def __post_init__(self) -> None:
        for site, function in (*self.forward, *self.backward):
            _takes_hook(site, function)
            if self.positions is not None and site.vision:
                raise SiteError(
                    f"positions = {self.positions} at {site.name!r}",
                    needed="no positions: its rows are patches, not positions of the sequence",
                    fix="leave out positions",
                )


def hook_set(
    every: Mapping[str, Site], n_layers: int, forward: Hooks, backward: Hooks, positions: Role | None
) -> HookSet:
    """Hooks with each name, short name or predicate replaced by the sites that it stands for.

    Raises:
        SiteError: a name that the model does not have, or a predicate that lets none through.
        EditError: no hook at all, or a function that cannot be called as ``fn(value, hook=hook)``.
    """
    if not forward and not backward:
        raise EditError("no hooks were given", needed="at least one pair of a name and a function")

    def resolved(hooks: Hooks) -> tuple[tuple[Site, HookFunction], ...]:
        return tuple(
            (every[name], function)
            for asked, function in hooks
            for name in matching_sites(asked, list(every), n_layers)
        )

    return HookSet(resolved(forward), resolved(backward), positions)


@dataclass(eq=False)
class BatchHooks:
    """The hooks of one batch while it runs: makes the calls of each forward, and counts them."""

    sets: Sequence[HookSet]
    counts: dict[tuple[int, str, int], int] = field(default_factory=dict)
    """(number of the set, which of its lists, number in that list) -> how often its function was called."""
    touched: dict[int, Tensor] = field(default_factory=dict)
    """Number of a set with positions -> the columns that its functions were given."""
    forwards: int = 0

    def sites(self) -> list[Site]:
        """The sites of all hooks."""
        return [site for one in self.sets for site, _ in (*one.forward, *one.backward)]

    def calls(self, run: Unrolled, n_queries: int) -> list[Call]:
        """What to call in a forward over the last `n_queries` columns; counts the forward."""
        latents = bool((run.segments[:, -n_queries:] == Segment.LATENT).any())
        out: list[Call] = []
        for number, one in enumerate(self.sets):
            mask = None if one.positions is None else one.positions.mask(run)[:, -n_queries:]
            if mask is not None:
                self._touch(number, mask, run.shape[1])
            for index, (site, function) in enumerate(one.forward):
                due = (latents or site.name != LATENT) and (self.forwards == 0 or not site.vision)
                if due and (mask is None or bool(_reachable(mask, site, run).any())):
                    hook = Hook(site.name, run, n_queries, self.forwards)
                    key = (number, "forward", index)
                    now = None if mask is None else _reachable(mask, site, run)
                    out.append(Call(site, self._counting(key, function, hook), now))
        self.forwards += 1
        return out

    def backwards(self, run: Unrolled) -> list[Backward]:
        """What to call with gradients of a replay of whole sequences."""
        return [
            Backward(site, self._counting((number, "backward", index), function, hook))
            for number, one in enumerate(self.sets)
            for index, (site, function) in enumerate(one.backward)
            for hook in [Hook(f"{site.name}_grad", run, run.shape[1], 0)]
        ]

    def audit(self, run: Unrolled, n_run: int, *, replayed: bool = False) -> None:
        """Raise EditError where a function was called another number of times than its site was reached.

        Args:
            run: the finished sequences.
            n_run: how many columns were actually run (a closing end token is not).
            replayed: they were run in one forward; otherwise the prompt was, and then every column alone.
        """
        starts = [0] if replayed else [0, *range(run.n_prompt, n_run)]
        spans = list(zip(starts, [*starts[1:], n_run], strict=True))
        for number, one in enumerate(self.sets):
            for index, (site, _) in enumerate(one.forward):
                expected = sum(_is_due(site, one.positions, run, span) for span in spans)
                self._check(site.name, self.counts.get((number, "forward", index), 0), expected)
            for index, (site, _) in enumerate(one.backward):
                self._check(f"{site.name}_grad", self.counts.get((number, "backward", index), 0), int(replayed))
            if one.positions is not None:
                latent_only = any(site.name == LATENT for site, _ in one.forward)
                self._check_positions(number, one.positions, run, n_run, latent_only)

    def _check(self, name: str, called: int, expected: int) -> None:
        if called != expected or not called:
            raise EditError(
                f"the hook at {name} was called {called} times",
                needed=f"{expected} times" if expected else "a run that reaches the site",
                cause="no item of the batch takes latents, or none has the positions"
                if not expected
                else "the site was reached at other moments than the finished run says: a role that depends on what "
                "comes later, or gradients in a run that has none",
                fix="choose another site, positions counted from the start, or mode='held'",
            )

    def _check_positions(self, number: int, role: Role, run: Unrolled, n_run: int, latent_only: bool) -> None:
        resolve(role, run)
        wanted = role.mask(run)[:, :n_run]
        if latent_only and bool((wanted & (run.steps[:, :n_run] < 0)).any()):
            raise EditError(
                f"the hook at {LATENT} was asked for at {role}", needed="latents",
                cause="other positions have no vector that is fed back",
            )  # fmt: skip
        done = torch.zeros_like(wanted)
        touched = self.touched[number][:, :n_run]
        done[:, : touched.shape[1]] = touched
        wrong = (done != wanted).any(1).nonzero().flatten().tolist()
        if wrong:
            ids = ", ".join(run.items[row].id for row in wrong[:5])
            raise EditError(
                f"hooks at {role} were given other positions than it names in {len(wrong)} items: {ids}",
                needed="a role whose positions are known while the model is still writing",
                cause="the role depends on what comes later (answer.first, latent.source, a negative index)",
                fix="choose positions counted from the start, or mode='held'",
            )

    def _touch(self, number: int, mask: Tensor, width: int) -> None:
        before = self.touched.get(number)
        start = torch.zeros(len(mask), width - mask.shape[1], dtype=torch.bool, device=mask.device)
        if before is not None:
            start[:, : before.shape[1]] = before
        self.touched[number] = torch.cat((start, mask), 1)

    def _counting(self, key: tuple[int, str, int], function: HookFunction, hook: Hook) -> Callable[[Tensor], Any]:
        def call(value: Tensor) -> Tensor | None:
            self.counts[key] = self.counts.get(key, 0) + 1
            return function(value, hook=hook)

        return call


def _is_due(site: Site, role: Role | None, run: Unrolled, span: tuple[int, int]) -> bool:
    """Whether a site was reached, at positions of the role, in the forward over these columns."""
    columns = slice(*span)
    if site.vision:
        return span[0] == 0
    reached = run.steps[:, columns] >= 0 if site.name == LATENT else torch.ones_like(run.steps[:, columns] >= 0)
    return bool((reached if role is None else reached & role.mask(run)[:, columns]).any())


def _reachable(mask: Tensor, site: Site, run: Unrolled) -> Tensor:
    """Of this forward's columns, those at which the site has a value."""
    return mask & (run.segments[:, -mask.shape[1] :] == Segment.LATENT) if site.name == LATENT else mask


def _takes_hook(site: Site, function: HookFunction) -> None:
    """Raise EditError where the function cannot be called as ``fn(value, hook=hook)``."""
    try:
        inspect.signature(function).bind(None, hook=None)
    except TypeError as error:
        raise EditError(
            f"the hook at {site.name} cannot be called as fn(value, hook=hook): {error}",
            needed="a function of one value with a parameter named hook",
            fix="write def fn(value, *, hook): ...",
        ) from error
    except ValueError:
        return  # A function without a readable signature; calling it will tell.
