"""Edits on one batch: turns them into writes of each forward, and checks afterwards that every one took effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions import Cut, DeleteKV, Edit, Patch, Skip, Structural
from prismlens.models.visibility import Rule
from prismlens.positions import latent, prompt, resolve
from prismlens.positions.places import OUTSIDE
from prismlens.sites import LATENT, Site, expand
from prismlens.trace.forward import Write
from prismlens.trace.known import Known
from prismlens.trace.skipping import refuse_unopened
from prismlens.unrolled import Segment, Unrolled


@dataclass(frozen=True, eq=False)
class Hidden:
    """What a structural edit hides in one forward: the queries among its columns, the keys among all so far."""

    query: Bool[Tensor, "batch query"]
    key: Bool[Tensor, "batch pos"]

    def pairs(self) -> Bool[Tensor, "batch query pos"]:
        """True where a query does not see a key that it would have seen."""
        causal = torch.ones(self.query.shape[1], self.key.shape[1], dtype=torch.bool, device=self.key.device)
        earlier = causal.tril(self.key.shape[1] - self.query.shape[1] - 1)
        return self.query[:, :, None] & self.key[:, None, :] & earlier


@dataclass(eq=False)
class BatchEdits:
    """The edits of one batch while it runs.

    Args:
        edits: in the order in which they apply.
        n_layers: of the model.
        n_heads: query heads of each layer.
        known: what was measured and looked up for them.
        opens: ids that open a stage of latents.
    """

    edits: Sequence[Edit]
    n_layers: int
    n_heads: int = 1
    known: Known = field(default_factory=Known)
    opens: tuple[int, ...] = ()
    touched: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    hidden: dict[int, list[Hidden]] = field(default_factory=dict)

    @property
    def donors(self) -> Mapping[Edit, Mapping[str, str]]:
        """Item id -> donor id, by edit that swaps."""
        return self.known.donors

    def rules(self) -> tuple[Rule, ...]:
        """The structural edits that hide positions, as visibility rules."""
        return tuple(self._rule(edit) for edit in self.edits if isinstance(edit.op, Cut | DeleteKV))

    def writes(self, run: Unrolled, n_queries: int) -> list[Write]:
        """What to change in a forward over the last `n_queries` columns."""
        out = []
        for number, edit in enumerate(self.edits):
            if isinstance(edit.op, Skip):
                continue
            if isinstance(edit.op, Structural):
                rule = self._rule(edit)
                seen = Hidden(rule.query.mask(run)[:, -n_queries:], rule.key.mask(run))
                self.hidden.setdefault(number, []).append(seen)
                continue
            mask = edit.positions.mask(run)
            now = mask[:, -n_queries:]
            for site in expand(edit.site, self.n_layers):
                reachable = now & (run.segments[:, -n_queries:] == Segment.LATENT) if site.name == LATENT else now
                if bool(reachable.any()):
                    self._note(number, site, reachable, run.shape[1])
                    out.append(self._write(edit, site, reachable, mask, run))
        return out

    def audit(self, run: Unrolled, n_run: int) -> None:
        """Raise EditError or RoleError where what was changed is not what the edit's role names.

        Args:
            run: the finished sequences.
            n_run: how many columns were actually run (a closing end token is not).
        """
        refuse_unopened(self.edits, self.opens, run)
        for number, edit in enumerate(self.edits):
            if isinstance(edit.op, Skip):
                continue
            if isinstance(edit.op, Structural):
                self._audit_hidden(number, edit, run)
                continue
            resolve(edit.positions, run)
            wanted = edit.positions.mask(run)[:, :n_run]
            for site in expand(edit.site, self.n_layers):
                done = _widen(self.touched.get((number, site.name)), wanted)
                if not torch.equal(done, wanted):
                    raise _missed(edit, site, run, wanted & ~done, done & ~wanted)
            _refuse_idle(edit, run)
            _refuse_unmatched(edit, run, [site.name for site in expand(edit.site, self.n_layers)])

    def _audit_hidden(self, number: int, edit: Edit, run: Unrolled) -> None:
        """Raise where a structural edit hid other positions than its roles name, or none at all in some item."""
        rule = self._rule(edit)
        for role in (rule.query, rule.key):
            resolve(role, run)
        query, key = rule.query.mask(run), rule.key.mask(run)
        wrong = torch.zeros(len(run.items), dtype=torch.bool, device=run.device)
        acted = wrong.clone()
        for seen in self.hidden[number]:
            width, n = seen.key.shape[1], seen.query.shape[1]
            final = Hidden(query[:, width - n : width], key[:, :width])
            wrong |= (seen.pairs() != final.pairs()).any((1, 2))
            acted |= final.pairs().any((1, 2))
        ids = [run.items[row].id for row in (wrong | ~acted).nonzero().flatten().tolist()]
        if ids:
            raise EditError(
                f"{edit} hid other positions than its roles name, or none, in {len(ids)} items: {', '.join(ids[:5])}",
                needed="roles that are known while the model is still writing, what is hidden before who looks",
                cause="a role depends on what comes later (answer.first, answer.source, latent.source)",
                fix="choose positions counted from the start, such as latent, image, answer",
            )

    def _note(self, number: int, site: Site, mask: Tensor, width: int) -> None:
        """Remember which columns an edit reached."""
        before = self.touched.get((number, site.name))
        start = torch.zeros(len(mask), width - mask.shape[1], dtype=torch.bool, device=mask.device)
        if before is not None:
            start[:, : before.shape[1]] = before
        self.touched[number, site.name] = torch.cat((start, mask), 1)

    def _write(self, edit: Edit, site: Site, now: Tensor, mask: Tensor, run: Unrolled) -> Write:
        """The write of one edit at one site."""
        n_queries = now.shape[1]
        rows, columns = now.nonzero(as_tuple=True)
        columns = columns + run.shape[1] - n_queries
        context = self.known.context(edit, site.name, run, rows, columns, mask)

        def change(values: Tensor, selected: Bool[Tensor, "batch query"]) -> Tensor:
            return edit.op(values, context)  # type: ignore[operator]

        return Write(site, now, change)

    def _rule(self, edit: Edit) -> Rule:
        """The visibility rule of a structural edit."""
        if isinstance(edit.op, Cut):
            chosen = edit.op.heads
            heads = None if chosen is None else tuple(head in chosen for head in range(self.n_heads))
            return Rule(edit.op.by, edit.op.to, edit.op.layers, heads)
        assert isinstance(edit.op, DeleteKV)
        # Markers and free tokens between two stages come after latents too, and could pass on what they read there.
        return Rule(~(prompt | latent), edit.positions)


def _widen(mask: Tensor | None, like: Tensor) -> Tensor:
    """The mask, cut or extended with False to the width of `like`."""
    out = torch.zeros_like(like)
    if mask is not None:
        width = min(mask.shape[1], like.shape[1])
        out[:, :width] = mask[:, :width]
    return out


def _refuse_idle(edit: Edit, run: Unrolled) -> None:
    """Raise EditError where all that an edit names in some item is the last token, which nothing comes after."""
    count = run.valid.long().cumsum(1)
    heard = edit.positions.mask(run) & (count < count[:, -1:])
    idle = (~heard.any(1)).nonzero().flatten().tolist()
    if idle:
        ids = [run.items[row].id for row in idle]
        raise EditError(
            f"{edit} can change nothing in {len(ids)} items: {', '.join(ids[:5])}",
            needed="a position that something comes after",
            cause="the role names the last token of the text, and the model writes nothing from there",
            fix="choose earlier positions, or raise max_new_tokens",
        )


def _refuse_unmatched(edit: Edit, run: Unrolled, sites: Sequence[str]) -> None:
    """Raise EditError where a source was read at more positions of an item than the edit's role names there.

    Outside latents places are matched by their order, and there the orders would not be the same.
    """
    if not isinstance(edit.op, Patch):
        return
    counts = (edit.positions.mask(run) & (run.steps < 0)).sum(1).tolist()
    for site in sites:
        rows = edit.op.source.at(site).rows
        held = [sum(place[0] == OUTSIDE for place in rows[item.id]) for item in run.items]
        wrong = [item.id for item, n, found in zip(run.items, counts, held, strict=True) if n and found != n]
        if wrong:
            raise EditError(
                f"{edit} names other positions than its source holds in {len(wrong)} items: {', '.join(wrong[:5])}",
                needed="a source that was read at the edit's role",
                cause="the cache was read at other positions, or at all of them",
                fix="read it with run_with_cache(items, ..., positions=role) and give the edit the same role",
            )


def _missed(edit: Edit, site: Site, run: Unrolled, missed: Tensor, extra: Tensor) -> EditError:
    """The error for an edit that reached other positions than its role names."""
    ids = [run.items[row].id for row in (missed | extra).any(1).nonzero().flatten().tolist()]
    return EditError(
        f"{edit} at {site.name} missed {int(missed.sum())} positions and changed {int(extra.sum())} others "
        f"in {len(ids)} items: {', '.join(ids[:5])}",
        needed="a role whose positions are known while the model is still writing, at a site that they pass",
        cause="the role depends on what comes later (answer.first, latent.source, a negative index), "
        "or hook_latent was asked for at positions that are not latents",
        fix="choose positions counted from the start, or another site",
    )
