"""The parts of the residual stream, by label; knows which activations they are and nothing of how these are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.cache.readout import Readout
from prismlens.errors import SettingError

Read: TypeAlias = Callable[[str], Tensor]
"""A hook name -> its values, ``[n, ...]``."""

Part: TypeAlias = tuple[list[str], Tensor]
"""Labels, and ``[n, d_model]`` for each of them."""

EMBED, BIAS, REMAINDER = "embed", "bias", "remainder"
ENTRY = "blocks.0.hook_resid_pre"
"""What entered the first block: a token's embedding, an image feature, or an injected latent."""

MODES: dict[str, tuple[str, ...]] = {
    "all": ("attn_out", "mlp_out"),
    "attn": ("attn_out",),
    "mlp": ("mlp_out",),
}
"""Mode of a decomposition -> what each block writes, in order."""

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far parts may be from their sum, relative to the larger of both, before something else must have been written."""


def stream_name(layer: int, n_layers: int) -> str:
    """The residual stream before a block, or after the last one for the number of blocks."""
    return f"blocks.{layer}.hook_resid_pre" if layer < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"


def accumulated(layer: int, n_layers: int, *, incl_mid: bool) -> list[tuple[str, str]]:
    """``(label, hook name)`` of the stream before each block up to `layer`, and on request inside them."""
    out = []
    for block in range(layer):
        out.append((f"{block}_pre", stream_name(block, n_layers)))
        out += [(f"{block}_mid", f"blocks.{block}.hook_resid_mid")] if incl_mid else []
    last = f"{layer}_pre" if layer < n_layers else "final_post"
    return [*out, (last, stream_name(layer, n_layers))]


def written(layer: int, mode: str, *, incl_embeds: bool) -> list[tuple[str, str]]:
    """``(label, hook name)`` of what entered the stream and what every block before `layer` wrote to it."""
    if mode not in MODES:
        raise SettingError(f"mode={mode!r}", needed=f"one of {', '.join(map(repr, MODES))}")
    parts = [(f"{block}_{part}", f"blocks.{block}.hook_{part}") for block in range(layer) for part in MODES[mode]]
    return [(EMBED, ENTRY), *parts] if incl_embeds else parts


def heads(read: Read, held: Callable[[str], bool], layer: int, readout: Readout) -> list[Part]:
    """What each head of the blocks before `layer` writes: ``attn.hook_result`` if held, else ``z`` through ``W_O``."""
    out: list[Part] = []
    for block in range(layer):
        if held(name := f"blocks.{block}.attn.hook_result"):
            results = read(name).transpose(0, 1)
        else:
            z, W_O = read(f"blocks.{block}.attn.hook_z"), readout.matrix("W_O", block)
            results = torch.einsum("n h e, h e d -> h n d", z, W_O.to(z.device, z.dtype))
        out.append(([f"L{block}H{head}" for head in range(len(results))], results))
    return out


def neurons(read: Read, layer: int, readout: Readout) -> list[Part]:
    """What each neuron of the blocks before `layer` writes: its activation along its row of ``W_out``."""
    out: list[Part] = []
    for block in range(layer):
        post, W_out = read(f"blocks.{block}.mlp.hook_post"), readout.matrix("W_out", block)
        results = torch.einsum("n m, m d -> m n d", post, W_out.to(post.device, post.dtype))
        out.append(([f"L{block}N{neuron}" for neuron in range(len(results))], results))
    return out


def biases(readout: Readout, layer: int, like: Tensor, *, of_heads: bool, of_neurons: bool) -> list[Part]:
    """The sum of what blocks before `layer` write whatever they read, once a row of `like`; nothing without biases."""
    every = [block.b_O for block in readout.blocks[:layer] if of_heads]
    every += [block.b_out for block in readout.blocks[:layer] if of_neurons]
    found = [bias.to(like.device) for bias in every if bias is not None]
    return [([BIAS], torch.stack(found).sum(0).expand(1, len(like), -1))] if found else []


def writes_to_stream(site: str, layer: int) -> bool:
    """Whether an edit of the site adds something to the stream before `layer` that no block wrote there."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)", site)
    return match is not None and site != ENTRY and int(match[1]) < layer + (match[2] == "pre")


def missing(total: Float[Tensor, "n d"], parts: Sequence[Part]) -> list[Part]:
    """The remainder that the parts leave of a total; none where they add up to it, but for rounding.

    An edit that wrote to the stream itself leaves one, and so does an architecture that adds to it between blocks.
    """
    wide = torch.promote_types(total.dtype, torch.float32)
    gap, largest = total.to(wide), total.to(wide).norm(dim=-1)
    for _, values in parts:
        one = values.to(wide)
        gap = gap - one.sum(0)
        largest = torch.maximum(largest, one.norm(dim=-1).amax(0))
    if bool((gap.norm(dim=-1) <= ROUNDING[total.dtype] * largest).all()):
        return []
    return [([REMAINDER], gap.to(total.dtype)[None])]
