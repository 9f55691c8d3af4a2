"""Who may attend to whom: attention masks from causality, padding and declared rules; knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prismlens.errors import CheckpointError, SettingError
from prismlens.positions import Role, parse
from prismlens.unrolled import Segment, Unrolled


@dataclass(frozen=True)
class Rule:
    """Positions of role `query` cannot attend to positions of role `key`, at `layers` (None: at every layer).

    `heads` says for every query head of the model whether the rule holds for it; None is all of them. `share` is the
    part of all items that the rule holds for: those whose `prompt_number` is at least its first and below its second
    number; None is every item.
    """

    query: Role
    key: Role
    layers: tuple[int, ...] | None = None
    heads: tuple[bool, ...] | None = None
    share: tuple[float, float] | None = None

    @classmethod
    def from_config(cls, entry: dict[str, Any]) -> Rule:
        """Read one entry of ``LVRConfig.visibility``; an unknown field is an error."""
        if not {"query", "key"} <= set(entry) <= {"query", "key", "layers", "share"}:
            raise CheckpointError(
                f"visibility rule {entry!r}", needed='the fields "query" and "key", and optionally "layers" and "share"'
            )
        layers, share = (None if (values := entry.get(name)) is None else tuple(values) for name in ("layers", "share"))
        if share is not None and not (len(share) == 2 and 0 <= share[0] <= share[1] <= 1):
            raise CheckpointError(f"visibility rule {entry!r}", needed='"share" as two numbers from 0 to 1, ascending')
        return cls(parse(entry["query"]), parse(entry["key"]), layers, share=share)

    def applies(self, layer: int) -> bool:
        """Whether the rule holds at the layer."""
        return self.layers is None or layer in self.layers


class LayerMasks(list[Tensor]):
    """One attention mask a decoder layer, in order; each layer takes its own."""


def masks(
    unrolled: Unrolled,
    rules: Sequence[Rule],
    *,
    n_layers: int,
    n_queries: int,
    blocks: Int[Tensor, "batch pos"] | None = None,
    groups: Int[Tensor, "batch pos"] | None = None,
) -> LayerMasks:
    """The masks for a forward over the last `n_queries` columns, one a layer, True where attention is allowed.

    A mask is ``[batch, 1, query, pos]``, and ``[batch, head, query, pos]`` at layers with a rule for single heads.

    Args:
        unrolled: everything so far, the queries' own columns included.
        rules: what is hidden from whom.
        n_layers: number of decoder layers; layers under the same rules share one tensor.
        n_queries: how many of the last columns are queries.
        blocks: where several sequences lie side by side: the number of each column's own. A column sees its own
            block, and the prefix of its group.
        groups: given with `blocks`: the group of each column. Block ``-1 - g`` is the prefix that group g shares.

    Raises:
        SettingError: only one of the two is given.
    """
    base = causal(unrolled.valid, n_queries)
    if (blocks is None) != (groups is None):
        raise SettingError("only one of blocks and groups", needed="both, or neither")
    if blocks is not None and groups is not None:
        same = blocks[:, -n_queries:, None] == blocks[:, None, :]
        prefix = blocks[:, None, :] == -1 - groups[:, -n_queries:, None]
        base = base & (same | prefix)
    hidden = [(rule, _hidden(rule, unrolled, n_queries, blocks)) for rule in rules]
    made: dict[tuple[int, ...], Tensor] = {}
    out = LayerMasks()
    for layer in range(n_layers):
        key = tuple(i for i, (rule, _) in enumerate(hidden) if rule.applies(layer))
        if key not in made:
            made[key] = _without(base, [hidden[i] for i in key])
        out.append(made[key])
    return out


def causal(valid: Bool[Tensor, "batch pos"], n_queries: int) -> Bool[Tensor, "batch query pos"]:
    """True where a key is no later than the query and is not padding."""
    width = valid.shape[1]
    columns = torch.arange(width, device=valid.device)
    return (columns[None, :] <= columns[-n_queries:, None]) & valid[:, None, :]


def keep_self(mask: Bool[Tensor, "*batch query pos"]) -> Bool[Tensor, "*batch query pos"]:
    """Every query sees at least itself, so that padding rows do not divide by zero."""
    queries, width = mask.shape[-2:]
    columns = torch.arange(width, device=mask.device)
    return mask | (columns[None, :] == columns[width - queries :, None])


def additive(mask: Bool[Tensor, "batch head query pos"], dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add to attention scores: 0 where allowed, the dtype's lowest where not."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def pick_layer_mask(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook of decoder layer `layer`: its own mask out of ``layer_masks``, in place of any other.

    The masks come as a keyword of their own because decoders hand unknown keywords on to every layer, while each treats
    ``attention_mask`` in its own way.
    """
    if "layer_masks" in kwargs:
        kwargs["attention_mask"] = kwargs.pop("layer_masks")[layer]
    return args, kwargs


def prompt_number(unrolled: Unrolled, blocks: Int[Tensor, "batch pos"] | None = None) -> Float[Tensor, "batch pos"]:
    """For every column a number from 0 to 1 drawn from the words of its item's question and options.

    A hash: the same words give the same number in any batch, in training and at test, and the order of the options does
    not matter. Over items it is spread evenly, and says nothing of the image or of the answer.

    Args:
        unrolled: with the whole prompts.
        blocks: see `masks`; without it a row is one item.
    """
    asked = (unrolled.segments == Segment.QUESTION) | (unrolled.segments == Segment.OPTIONS)
    own = torch.zeros_like(unrolled.input_ids) if blocks is None else blocks.clamp(min=0)
    sums = torch.zeros(own.shape[0], int(own.max()) + 1, dtype=torch.long, device=own.device)
    sums = _mixed(sums.scatter_add_(1, own, torch.where(asked, _mixed(unrolled.input_ids), 0)))
    return ((sums & (2**52 - 1)).double() / 2**52).gather(1, own)


def _mixed(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The finaliser of MurmurHash3, in 64-bit integers that wrap around."""
    for factor in (-49064778989728563, -4265267296055464877):
        values = (values ^ (values >> 33)) * factor
    return values ^ (values >> 33)


def _hidden(
    rule: Rule, unrolled: Unrolled, n_queries: int, blocks: Int[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch query pos"]:
    """True where the rule hides a key from a query, by the roles that both had when the query was computed.

    A query computed before the model entered latent mode again saw the text of then as its answer.
    """
    if unrolled.as_written is None:
        return _pairs(rule, unrolled, n_queries, blocks)
    begun = unrolled.blocks_before
    out = torch.zeros(len(begun), n_queries, begun.shape[1], dtype=torch.bool, device=begun.device)
    for number in range(int(begun.max()) + 1):
        then = replace(unrolled, segments=torch.where(begun < number, unrolled.segments, unrolled.as_written))
        out |= _pairs(rule, then, n_queries, blocks) & (begun[:, -n_queries:, None] == number)
    return out


def _pairs(
    rule: Rule, unrolled: Unrolled, n_queries: int, blocks: Int[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch query pos"]:
    query = rule.query.mask(unrolled)[:, -n_queries:]
    if rule.share is not None:
        number = prompt_number(unrolled, blocks)[:, -n_queries:]
        query = query & (number >= rule.share[0]) & (number < rule.share[1])
    return query[:, :, None] & rule.key.mask(unrolled)[:, None, :]


def _without(
    base: Bool[Tensor, "batch query pos"], hidden: Sequence[tuple[Rule, Bool[Tensor, "batch query pos"]]]
) -> Bool[Tensor, "batch head query pos"]:
    """The mask of a layer: what no rule hides, and every query itself."""
    mask = base[:, None]
    for rule, pairs in hidden:
        chosen = torch.tensor([True] if rule.heads is None else rule.heads, device=base.device)
        mask = mask & ~(pairs[:, None] & chosen[:, None, None])
    return keep_self(mask)
