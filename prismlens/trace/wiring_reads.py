"""What sites and latents give on a made-up run against plain hooks, the config and each other; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from nnsight import NNsight
from torch import Tensor

from prismlens.errors import PrismlensError
from prismlens.models.latent import LatentModel
from prismlens.sites import LATENT, site
from prismlens.trace.forward import Read, traced_step
from prismlens.trace.wiring_run import Watched, eager, entered, left
from prismlens.unrolled import Segment, Unrolled

Found: TypeAlias = Iterator[tuple[str, str, str]]
"""Faults: the site, the check, and what is wrong."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far two ways to the same numbers may be apart, relative to the largest, before it is a fault."""
SOFTMAX = 1e-5
"""Eager attention normalises in float32 whatever the model's precision; what rests on it is not nearer than this."""
STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def modules(hf: LatentModel, names: Sequence[str]) -> Found:
    """Behind every name is a module, every layer is in its place, projections are as wide as the config says."""
    for index, layer in enumerate(hf.decoder.layers):
        said = getattr(getattr(layer, "self_attn", None), "layer_idx", index)
        if said != index:
            yield f"blocks.{index}.hook_resid_pre", "path", f"the layer there is the one of index {said}"
    wide = _widths(hf)
    for name in names:
        place = site(name, hf.n_layers)
        try:
            module = hf.get_submodule(place.path)
        except AttributeError:
            yield name, "path", f"the model has no module {place.path}"
            continue
        wanted, given = wide.get(_inner(name)), getattr(module, "out_features", None)
        if place.end == "output" and None not in (wanted, given) and given != wanted:
            yield name, "path", f"{place.path} gives {given} numbers a position instead of {wanted}"


def latents(run: Unrolled, seen: Watched) -> Found:
    """What is fed at latent step k is the state before it, and the vector that the run recorded as its k-th."""
    for forward, fed in enumerate(seen.fed[1:], 1):
        steps = run.steps[:, run.n_prompt - 1 + forward]
        for row in (steps >= 0).nonzero().flatten().tolist():
            step = int(steps[row])
            if not torch.equal(fed[row], seen.made[forward - 1][row].to(fed.dtype)):
                yield LATENT, "latent", f"what is fed at step {step} is not the state that the model made just before"
            if not torch.equal(fed[row], run.latents[row, step]):
                yield LATENT, "latent", f"what is fed at step {step} is not what the run recorded as latent {step}"


def replay(hf: LatentModel, run: Unrolled, seen: Watched, inputs: dict[str, Any]) -> Found:
    """One forward over the finished sequences gives the states of the cached run."""
    states = hf.step(**inputs).latent
    for forward, made in enumerate(seen.made):
        column = run.n_prompt - 1 + forward
        valid = run.valid[:, column]
        if bool(valid.any()) and not _near(states[valid, column], made[valid]):
            yield (
                "ln_final",
                "replay",
                f"one forward over all and the cached run differ at column {column}",
            )
            return


def read(
    wrapper: NNsight, hf: LatentModel, inputs: dict[str, Any], run: Unrolled, names: Sequence[str]
) -> tuple[list[tuple[str, str, str]], dict[str, Tensor]]:
    """Every site's values at all positions, or those that cannot be read."""

    def read(some: Sequence[str]) -> dict[str, Tensor]:
        return traced_step(wrapper, inputs, [], [Read(site(name, hf.n_layers), run.valid) for name in some]).values

    try:
        return [], read(names)
    except Exception:  # whatever a wrong path provokes; each site is then tried alone, to name those that fail
        faults: list[tuple[str, str, str]] = []
        for name in names:
            try:
                read([name])
            except Exception as error:
                what = error.given if isinstance(error, PrismlensError) else f"{type(error).__name__}: {error}"
                faults.append((name, "fires", what.splitlines()[0]))
        for before, name in pairwise(names):
            if not faults and not _readable(read, [before, name]):
                faults.append((name, "fires", f"it cannot be read after {before}"))
        return faults or [(names[0], "fires", "the sites cannot be read together, though each can alone")], {}


def _readable(read: Callable[[Sequence[str]], object], names: Sequence[str]) -> bool:
    try:
        read(names)
    except Exception:  # whatever a wrong path provokes
        return False
    return True


def shapes(hf: LatentModel, values: dict[str, Tensor]) -> Found:
    """Values of a site have the width that the config gives them, at every layer."""
    wide = _widths(hf)
    first: dict[str, torch.Size] = {}
    for name, value in values.items():
        inner = _inner(name)
        wanted, given = wide.get(inner), value[0].numel()
        if wanted is not None and given != wanted:
            yield name, "shape", f"{given} numbers a position instead of {wanted}"
        elif value.shape[1:] != first.setdefault(inner, value.shape[1:]):
            yield name, "shape", f"{tuple(value.shape[1:])} at a position, and {tuple(first[inner])} in the first layer"
        elif not bool(value.isfinite().all()):
            yield name, "shape", "values that are not finite"


def stream(hf: LatentModel, run: Unrolled, inputs: dict[str, Any], values: dict[str, Tensor]) -> Found:
    """Each block reads and gives what plain hooks on the decoder's layers see, and the stream adds up, bit for bit."""
    seen: dict[str, list[Tensor]] = {"resid_pre": [], "resid_post": []}
    with ExitStack() as stack:
        for layer in hf.decoder.layers:
            stack.enter_context(entered(layer, lambda value: seen["resid_pre"].append(value[run.valid])))
            stack.enter_context(left(layer, lambda value: seen["resid_post"].append(value[run.valid])))
        hf.step(**inputs)
    deep, image = inputs.get("deep_features", ()), (run.segments == Segment.IMAGE)[run.valid]
    for layer in range(hf.n_layers):
        here = {
            part: values[f"blocks.{layer}.hook_{part}"]
            for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        }
        for part, plain in seen.items():
            if not torch.equal(here[part], plain[layer]):
                yield (
                    f"blocks.{layer}.hook_{part}",
                    "stream",
                    f"it is not what layer {layer} of the decoder {'reads' if part == 'resid_pre' else 'gives'}",
                )
        if not torch.equal(here["resid_mid"], here["resid_pre"] + here["attn_out"]):
            yield f"blocks.{layer}.hook_resid_mid", "stream", "it is not hook_resid_pre + hook_attn_out"
        if not torch.equal(here["resid_post"], here["resid_mid"] + here["mlp_out"]):
            yield f"blocks.{layer}.hook_resid_post", "stream", "it is not hook_resid_mid + hook_mlp_out"
        if layer + 1 < hf.n_layers:
            coming = here["resid_post"].clone()
            if layer < len(deep):
                coming[image] += deep[layer].to(coming.dtype)
            if not torch.equal(coming, values[f"blocks.{layer + 1}.hook_resid_pre"]):
                yield f"blocks.{layer + 1}.hook_resid_pre", "stream", f"it is not what leaves block {layer}"


def attention(hf: LatentModel, run: Unrolled, inputs: dict[str, Any]) -> Found:
    """Rows of attention sum to 1 over the keys that the masks allow; eager attention gives the same states."""
    weights: dict[int, Any] = {}
    own = hf.step(**inputs)
    with eager(hf), ExitStack() as stack:
        for index, layer in enumerate(hf.decoder.layers):
            stack.enter_context(left(layer.self_attn, lambda value, index=index: weights.__setitem__(index, value[1])))
        again = hf.step(**inputs)
    for layer, allowed in enumerate(inputs["attention_mask"]):
        name, pattern = f"blocks.{layer}.attn.hook_pattern", weights.get(layer)
        if not isinstance(pattern, Tensor):
            yield name, "attention", "eager attention returned no weights"
            continue
        sums = pattern.float().sum(-1)
        if not bool(((sums - 1).abs() < max(TOLERANCE.get(pattern.dtype, 1e-4), SOFTMAX)).all()):
            yield name, "attention", f"its rows sum to numbers from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
        if bool((pattern.masked_fill(allowed, 0) != 0).any()):
            yield name, "attention", "a key that the mask hides has weight"
    if not _near(again.hidden[run.valid], own.hidden[run.valid], at_least=SOFTMAX):
        yield "ln_final", "attention", "eager attention and the model's own give other states"


def _near(one: Tensor, other: Tensor, at_least: float = 0.0) -> bool:
    scale = float(other.float().abs().max().clamp(min=1e-9))
    return float((one.float() - other.float()).abs().max()) / scale <= max(TOLERANCE.get(one.dtype, 1e-4), at_least)


def _widths(hf: LatentModel) -> dict[str, int]:
    """How many numbers a site inside a block has at a position, by the config."""
    text: Any = hf.config.text
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = text.num_key_value_heads * d_head
    wide = {"attn.hook_q": text.num_attention_heads * d_head, "attn.hook_k": keys, "attn.hook_v": keys}
    return wide | {f"hook_{part}": text.hidden_size for part in STREAM}


def _inner(name: str) -> str:
    """The name inside a block, or the whole name of a site outside the blocks."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name
