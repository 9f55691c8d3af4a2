"""The logit lens: what the unembedding reads off any layer at chosen positions; knows no probe and fits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import prismlens.stats as stats
from prismlens.errors import SettingError
from prismlens.models.answers import letter_ids
from prismlens.positions import Role, latent
from prismlens.sites import LATENT, get_act_name, site
from prismlens.trace import PrismModel, Run
from prismlens.types import Item


@dataclass(frozen=True, eq=False)
class LogitLens:
    """One row an item, position and depth.

    Args:
        rows: ``item, group, column`` (of the item's own sequence, padding not counted), ``step`` (of the latent, -1
            elsewhere), ``site, depth`` (0 as fed, i + 1 after block i), ``top`` (tokens, likeliest first),
            ``top_logprobs`` (nats), ``option_logprobs`` (nats, of the item's letters over the whole vocabulary),
            ``choice`` (the likeliest letter; None without options), ``answer, correct``.
    """

    rows: pd.DataFrame

    def frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One line a step and depth: share of positions whose likeliest letter is the answer, and what letters weigh.

        Columns ``step, depth, site, n, accuracy, low, high`` (bootstrap over groups) and ``letters`` (mean probability
        of all the item's letters together: where it is near 0 the likeliest letter means little). Items without an
        answer are left out, so ``n`` may differ from the number of items.
        """
        known = self.rows[self.rows.answer.notna()]
        lines = []
        for (step, depth, name), rows in known.groupby(["step", "depth", "site"], sort=True):  # type: ignore[misc]
            interval = stats.cluster_mean_interval(rows.correct.to_numpy(dtype=float), rows.group, seed=seed)
            weight = [float(torch.tensor(own).exp().sum()) for own in rows.option_logprobs]
            lines.append(
                {
                    "step": step, "depth": depth, "site": name, "n": len(rows), "accuracy": interval.estimate,
                    "low": interval.low, "high": interval.high, "letters": sum(weight) / len(weight),
                }
            )  # fmt: skip
        return pd.DataFrame(lines)


def logit_lens(
    model: PrismModel,
    items: Sequence[Item],
    *,
    positions: Role = latent,
    layers: Sequence[int] | None = None,
    top: int = 5,
    run: Run | None = None,
) -> LogitLens:
    """Unembed the residual stream after each block, past the final norm, and each latent as it was fed.

    A block's output passes the model's own final norm first, so that after the last block the lens is the model's own
    prediction. A latent as it is fed has passed that norm already (it is the final state of the position before) and is
    unembedded as it is. Behind an LVR head it no longer lives where the unembedding reads, and depth 0 is not there.

    Args:
        model: the model; its edits apply.
        items: the items.
        positions: where to look.
        layers: blocks, all by default.
        top: how many tokens to name.
        run: a finished run of these items under the same edits.

    Raises:
        SettingError: `top` is below 1 or beyond the vocabulary; RoleError, SiteError: no such position or layer.
    """
    vocabulary = model.hf.lm_head.weight.shape[0]
    if not 1 <= top <= vocabulary:
        raise SettingError(f"top={top}", needed=f"a number from 1 to {vocabulary}")
    chosen = range(model.hf.n_layers) if layers is None else sorted(set(layers))
    depths = {site(get_act_name("resid_post", layer), model.hf.n_layers).name: layer + 1 for layer in chosen}
    run = model.generate(items) if run is None else run.take(items)
    parts = []
    for start in range(0, len(items), model.batch_size):
        part = items[start : start + model.batch_size]
        names = [LATENT, *depths] if int(run.take(part).steps_taken.max()) else list(depths)
        _, cache = model.run_with_cache(part, names, positions=positions, run=run, return_type=None)
        for name in names:
            if name not in cache or (name == LATENT and model.hf.has_head):
                continue
            logprobs = unembedded(model, cache.flat(name), normed=name == LATENT)
            where = cache.where(name)
            own = cache.unrolled.valid.long().cumsum(1)[where.rows, where.columns] - 1
            about = pd.DataFrame(
                {"row": where.rows.tolist(), "column": own.tolist(),
                 "step": cache.unrolled.steps[where.rows, where.columns].tolist()}
            )  # fmt: skip
            parts.append(_read(model, part, about, logprobs, top).assign(site=name, depth=depths.get(name, 0)))
    return LogitLens(pd.concat(parts, ignore_index=True))


@torch.no_grad()
def unembedded(model: PrismModel, states: Float[Tensor, "n d_model"], *, normed: bool) -> Float[Tensor, "n d_vocab"]:
    """Log-probabilities (nats) that the model would give next tokens at these states.

    Args:
        model: whose final norm and unembedding are used.
        states: residual stream, or final states where `normed`.
        normed: whether the final norm has been passed.
    """
    final = states if normed else model.hf.model.language_model.norm(states)
    return model.hf.lm_head(final).float().log_softmax(-1)


def _read(
    model: PrismModel, items: Sequence[Item], about: pd.DataFrame, logprobs: Float[Tensor, "n d_vocab"], top: int
) -> pd.DataFrame:
    """One row a position: its tokens and its letters."""
    best = logprobs.topk(top, dim=-1)
    rows = []
    for n, (row, column, step) in enumerate(about.itertuples(index=False)):
        item = items[row]
        spelled = letter_ids(model.processor, item.letters)
        options = [float(logprobs[n, list(ids)].logsumexp(-1)) for ids in spelled]
        choice = item.letters[options.index(max(options))] if options else None
        rows.append(
            {
                "item": item.id, "group": item.group, "column": column, "step": step,
                "top": [model.processor.decode([token]) for token in best.indices[n].tolist()],
                "top_logprobs": best.values[n].tolist(), "option_logprobs": options, "choice": choice,
                "answer": item.answer, "correct": choice == item.answer if item.answer else None,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
