"""The prompt's states and cache after one forward, and rows of them put together anew; knows no edits and no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from prismlens.models.latent import LatentModel, StepOutput
from prismlens.unrolled import Unrolled, take


@dataclass(frozen=True, eq=False)
class Prefix:
    """A batch of prompts after their forward: all that decoding starts from.

    Args:
        run: the sequences so far.
        out: states and logits of the last column alone.
        cache: keys and values of every column. Decoding extends the cache that it is given; `gather` makes another.
        vision: what the tower gave for all images of the batch, for further forwards over the same prompts.
    """

    run: Unrolled
    out: StepOutput
    cache: DynamicCache
    vision: Mapping[str, Any]

    @property
    def n_bytes(self) -> int:
        """What the keys and values and the image features take."""
        kept = [getattr(layer, name) for layer in self.cache.layers for name in ("keys", "values")]
        own = [one for value in self.vision.values() for one in (value if isinstance(value, tuple) else (value,))]
        return sum(tensor.nbytes for tensor in (*kept, *own) if tensor is not None)


def gather(model: LatentModel, parts: Sequence[tuple[Prefix, Sequence[int]]]) -> Prefix:
    """The chosen rows of some prefixes as one, each number as it was; rows may be repeated.

    Args:
        model: the model whose states they are.
        parts: prefixes of the same prompts (they may differ by edits of the prompt), and rows of each.
    """
    run, device = parts[0][0].run, parts[0][0].run.device
    assert all(prefix.run.items == run.items for prefix, _ in parts), "prefixes of different prompts"
    indices = [torch.tensor(list(rows), dtype=torch.long, device=device) for _, rows in parts]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([one[index.to(one.device)] for one, index in zip(tensors, indices, strict=True)])

    prefixes = [prefix for prefix, _ in parts]
    cache = DynamicCache(config=model.config.text)
    for number in range(len(prefixes[0].cache.layers)):
        layers = [prefix.cache.layers[number] for prefix in prefixes]
        keys, values = (joined([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
        cache.update(keys, values, number)
    out = StepOutput(
        joined([prefix.out.hidden for prefix in prefixes]),
        joined([prefix.out.logits for prefix in prefixes]),
        joined([prefix.out.latent for prefix in prefixes]),
    )
    return Prefix(take(run, torch.cat(indices).tolist()), out, cache, {})
