"""Numbers computed from logits and vectors; knows nothing of models, items or statistics.

Options: a row may have fewer options than another, so tables of options are padded with ``-inf``, which the functions
below treat as "no such option".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prismlens.errors import SettingError


def option_logprobs(
    logits: Float[Tensor, "batch vocab"], option_ids: Sequence[Sequence[int]]
) -> Float[Tensor, "batch option"]:
    """Log-probabilities (nats, over the whole vocabulary) of the options' tokens.

    Args:
        logits: at the position that predicts the option's token; half precision is raised to float32.
        option_ids: the token id of each option, per row; rows may differ in length.

    Returns:
        One column per option, padded with ``-inf`` to the longest row.

    Raises:
        SettingError: rows differ in number, a row has no options, or an id lies outside the vocabulary.
    """
    batch, vocab = logits.shape
    if len(option_ids) != batch:
        raise SettingError(
            f"{batch} rows of logits and {len(option_ids)} of option ids", needed="one row for each item"
        )
    for row, ids in enumerate(option_ids):
        if len(ids) == 0 or min(ids) < 0 or max(ids) >= vocab:
            raise SettingError(
                f"row {row} has the option ids {list(ids)}",
                needed=f"at least one id, each from 0 to {vocab - 1}",
                cause="an open question, or the ids of another tokenizer",
            )
    width = max((len(ids) for ids in option_ids), default=0)
    padded = [[*ids, *[-1] * (width - len(ids))] for ids in option_ids]
    index = torch.tensor(padded, dtype=torch.long, device=logits.device).reshape(batch, width)
    picked = _full(logits).log_softmax(-1).gather(-1, index.clamp(min=0))
    return picked.masked_fill(index < 0, -torch.inf)


def choice_from_logits(option_logits: Float[Tensor, "batch option"]) -> Int[Tensor, " batch"]:
    """Index of the best option of each row; of equals, the first.

    Args:
        option_logits: logits or log-probabilities of the options, ``-inf`` at padding.

    Raises:
        SettingError: a row has no option, or holds NaN.
    """
    _check_options(option_logits, fewest=1)
    return option_logits.argmax(-1)


def margin(option_logits: Float[Tensor, "batch option"], right: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Log-probability of the right option minus that of the best other (nats); positive where the choice is right.

    Args:
        option_logits: logits or log-probabilities (their differences are the same), ``-inf`` at padding.
        right: index of the right option.

    Raises:
        SettingError: a row has fewer than two options or holds NaN, or `right` names no option of its row.
    """
    _check_options(option_logits, fewest=2)
    _check_right(option_logits, right)
    values, index = _full(option_logits), right.long()[:, None]
    others = values.scatter(-1, index, -torch.inf).amax(-1)
    return values.gather(-1, index)[:, 0] - others


def kl_over_options(
    p_logits: Float[Tensor, "batch option"], q_logits: Float[Tensor, "batch option"]
) -> Float[Tensor, " batch"]:
    """KL(p || q) in nats, where p and q are each normalised over the row's options only.

    Args:
        p_logits: logits or log-probabilities of the reference (clean) run, ``-inf`` at padding.
        q_logits: the same options in the other (corrupted) run.

    Raises:
        SettingError: the shapes or the options differ, a row has no option, or holds NaN.
    """
    _check_same_shape(p_logits, q_logits)
    _check_options(p_logits, fewest=1)
    _check_options(q_logits, fewest=1)
    absent = p_logits == -torch.inf
    if not torch.equal(absent, q_logits == -torch.inf):
        raise SettingError("the two runs have different options", needed="the same items in the same order")
    p, q = _full(p_logits).log_softmax(-1), _full(q_logits).log_softmax(-1)
    terms = p.exp() * (p - q)
    # -inf minus -inf is NaN at padding; and rounding may leave a sum a hair below the smallest possible value, 0.
    return terms.masked_fill(absent, 0.0).sum(-1).clamp(min=0)


def cosine(a: Float[Tensor, "*rows d_model"], b: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
    """Cosine of the angle between vectors; NaN where either is the zero vector, which has no direction.

    Raises:
        SettingError: the shapes differ (nothing is broadcast).
    """
    _check_same_shape(a, b)
    first, second = (_full(x) / _full(x).norm(dim=-1, keepdim=True) for x in (a, b))
    return (first * second).sum(-1).clamp(-1, 1)


def mse(a: Float[Tensor, "*rows d_model"], b: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
    """Mean over components of the squared difference, in the vectors' unit squared.

    Raises:
        SettingError: the shapes differ (nothing is broadcast).
    """
    _check_same_shape(a, b)
    return (_full(a) - _full(b)).square().mean(-1)


def _full(x: Tensor) -> Tensor:
    """The tensor in float32 or, where it has that already, float64."""
    return x if x.dtype == torch.float64 else x.float()


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise SettingError(f"the shapes are {tuple(a.shape)} and {tuple(b.shape)}", needed="the same shape twice")


def _check_options(option_logits: Tensor, fewest: int) -> None:
    if option_logits.isnan().any():
        row = int(option_logits.isnan().any(-1).nonzero()[0])
        raise SettingError(f"row {row} holds NaN", needed="numbers", cause="the run overflowed, or an edit wrote NaN")
    counts = (option_logits != -torch.inf).sum(-1)
    if (counts < fewest).any():
        row = int((counts < fewest).nonzero()[0])
        raise SettingError(f"row {row} has {int(counts[row])} options", needed=f"at least {fewest}")


def _check_right(option_logits: Tensor, right: Tensor) -> None:
    if right.shape != option_logits.shape[:1]:
        raise SettingError(
            f"`right` has the shape {tuple(right.shape)} and there are {len(option_logits)} rows",
            needed="one index a row",
        )
    inside = (right >= 0) & (right < option_logits.shape[-1])
    index = right.long().clamp(0, option_logits.shape[-1] - 1)[:, None]
    named = inside & (option_logits.gather(-1, index)[:, 0] != -torch.inf)
    if not named.all():
        row = int((~named).nonzero()[0])
        raise SettingError(
            f"`right` is {int(right[row])} in row {row}",
            needed="the index of one of the row's options",
            cause="padding",
        )
