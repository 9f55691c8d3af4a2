"""What is measured at a pair's decision: a number from logits; knows no layers and no positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import ItemError, SettingError
from prismlens.patching.runs import Decision
from prismlens.types import Item

Metric: TypeAlias = str | Callable[..., Tensor]
"""A name in `METRICS`, or a function: ``logits [row, d_vocab] -> [row]``. Rows are pairs in no particular order and may
repeat, so a function that depends on the pair takes three arguments: ``(logits, clean_items, corrupted_items)``, both
lists aligned with the rows."""


def logit_diff(logprobs: Float[Tensor, "row d_vocab"], decisions: Sequence[Decision]) -> Float[Tensor, " row"]:
    """Log-probability of the clean answer minus that of the corrupted one (nats): the difference of their logits."""
    return _answer(logprobs, [one.clean for one in decisions]) - _answer(logprobs, [one.corrupted for one in decisions])


def logprob(logprobs: Float[Tensor, "row d_vocab"], decisions: Sequence[Decision]) -> Float[Tensor, " row"]:
    """Log-probability of the clean answer (nats)."""
    return _answer(logprobs, [one.clean for one in decisions])


METRICS: Mapping[str, Callable[[Tensor, Sequence[Decision]], Tensor]] = MappingProxyType(
    {"logit_diff": logit_diff, "logprob": logprob}
)
"""The metrics that have a name."""


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric of some pairs, ready to be applied to rows of logits.

    Args:
        metric: name or function.
        decisions: of every pair.
        clean: the clean item of every pair.
        corrupted: the corrupted item of every pair.
    """

    metric: Metric
    decisions: Sequence[Decision]
    clean: Sequence[Item]
    corrupted: Sequence[Item]

    def __call__(self, logits: Float[Tensor, "row d_vocab"], pairs: Sequence[int]) -> Float[Tensor, " row"]:
        """The metric of every row; `pairs` says which pair each row belongs to.

        Raises:
            SettingError: a function gave something else than one number a row.
        """
        if isinstance(self.metric, str):
            full = logits if logits.dtype == torch.float64 else logits.float()
            return METRICS[self.metric](full.log_softmax(-1), [self.decisions[pair] for pair in pairs])
        items = ([self.clean[pair] for pair in pairs], [self.corrupted[pair] for pair in pairs])
        out: Any = self.metric(logits, *items) if _takes_items(self.metric) else self.metric(logits)
        if not isinstance(out, Tensor) or out.shape != logits.shape[:1]:
            given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise SettingError(
                f"the metric gave {given} for {len(logits)} rows of logits",
                needed=f"one number a row, shape ({len(logits)},)",
                cause="a mean over rows, or logits taken to have a position axis",
            )
        return out


def check_metric(metric: Metric) -> None:
    """Refuse what is neither a known name nor a function of one or three arguments.

    Raises:
        SettingError: it is something else.
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise SettingError(f"metric {metric!r}", needed=f"one of {', '.join(METRICS)}, or a function of logits")
    if not isinstance(metric, str) and not callable(metric):
        raise SettingError(f"metric {metric!r}", needed="a name, or a function of logits")
    if callable(metric) and _arguments(metric) not in (1, 3):
        raise SettingError(
            f"a metric of {_arguments(metric)} arguments",
            needed="one (logits), or three (logits, clean_items, corrupted_items)",
        )


def metric_name(metric: Metric) -> str:
    """How a manifest calls the metric."""
    return metric if isinstance(metric, str) else getattr(metric, "__qualname__", type(metric).__name__)


def _takes_items(metric: Callable[..., Tensor]) -> bool:
    return _arguments(metric) == 3


def _arguments(metric: Callable[..., Tensor]) -> int:
    """How many positional arguments without a default a function has."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(metric).parameters.values()
    return sum(one.kind in kinds and one.default is inspect.Parameter.empty for one in parameters)


def _answer(logprobs: Float[Tensor, "row d_vocab"], ids: Sequence[tuple[int, ...]]) -> Float[Tensor, " row"]:
    """Log-probability of any of each row's ids."""
    if not all(ids):
        raise ItemError(
            "an answer letter has no one-token spelling", needed="letters that are single tokens", fix="give a function"
        )
    return torch.stack([row[list(own)].logsumexp(0) for row, own in zip(logprobs, ids, strict=True)])
