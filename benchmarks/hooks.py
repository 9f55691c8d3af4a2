"""Cost of reading activations, beside plain PyTorch hooks in the same run: seconds as ratios, memory as bytes.

    python benchmarks/hooks.py --json benchmarks/records/hooks.json

*Speed.* Four ways to run one forward take turns, so that a busy machine slows all of them; a round's ratio is that of
processor seconds on one thread, and the figure is the median over rounds. The baseline is a forward hook on every block
that keeps the block's output. "read" is the trace that `run_with_cache` runs, selecting every position, and "named" a
trace that reads ``layers[i].output`` in its block.

*Memory.* Bytes of live tensors, counted storage by storage as PyTorch makes them: the peak of `run_with_cache` over
finished runs, minus the peak of the same forwards without it. Workspaces inside an operation are not counted, on either
side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prismlens.data.shapes import shapes
from prismlens.models.loop import replay_inputs
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.visibility import LayerMasks
from prismlens.positions import Role, latent
from prismlens.results import environment_manifest
from prismlens.trace import PrismModel, load
from prismlens.trace.forward import Read, traced_step
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.types import Item
from prismlens.unrolled import take

SPEED = {"12 x 256, 8 x 128": (12, 256, 1, 1.05), "4 x 64, 8 x 128": (4, 64, 5, 1.15)}
"""Layers and width, batch and tokens -> layers, width, how many times the rounds, the ratio that is wanted at most."""
LIMIT = 1.2
"""Bytes that a cache may take for a byte that was asked for, one layer's output aside."""


def random_model(layers: int, width: int) -> PrismModel:
    """A tiny model of some size with random weights."""
    processor = tiny_processor(start=True)
    hf = LVRForConditionalGeneration(tiny_config(processor.tokenizer, width=width, layers=layers, latent_steps=4))
    initialise(hf.eval(), 0)
    model = load((hf, processor), batch_size=8, check=False)
    model.max_new_tokens = 2
    return model


def plainly_hooked(model: PrismModel, inputs: dict[str, Any]) -> list[Tensor]:
    """The baseline: the output of every block, kept by a forward hook."""
    kept: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _, args, out: kept.append(out)) for layer in model.hf.decoder.layers]
    model.hf.step(**inputs)
    for handle in handles:
        handle.remove()
    return kept


def read(model: PrismModel, inputs: dict[str, Any], reads: Sequence[Read]) -> list[Tensor]:
    """What `run_with_cache` does in a forward."""
    return list(traced_step(model.engine.wrapper, inputs, [], reads).values.values())


def named(model: PrismModel, inputs: dict[str, Any]) -> list[Tensor]:
    """nnsight alone."""
    wrapper: Any = model.engine.wrapper
    kept = []
    with wrapper.trace(fn="step", **inputs):
        for layer in wrapper.model.language_model.layers:
            kept.append(layer.output)
    return kept


@torch.no_grad()
def speed(layers: int, width: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of each way's seconds, and of its ratio to the plain hooks of its round."""
    model = random_model(layers, width)
    ids = torch.randint(20, 250, (8, 128), generator=torch.Generator().manual_seed(0))
    seen = torch.ones(128, 128, dtype=torch.bool).tril().expand(8, 1, -1, -1)
    inputs: dict[str, Any] = {
        "input_ids": ids, "position_ids": torch.arange(128).expand(3, 8, -1),
        "attention_mask": LayerMasks([seen] * layers),
    }  # fmt: skip
    every = torch.ones(8, 128, dtype=torch.bool)
    reads = [Read(model.engine.site(f"blocks.{layer}.hook_resid_post"), every) for layer in range(layers)]
    ways: dict[str, Callable[[], Any]] = {
        "plain hooks": lambda: plainly_hooked(model, inputs),
        "read": lambda: read(model, inputs, reads),
        "named": lambda: named(model, inputs),
        "bare": lambda: model.hf.step(**inputs),
    }
    one, other = ways["plain hooks"](), ways["read"]()
    assert all(torch.equal(a.flatten(0, 1), b) for a, b in zip(one, other, strict=True)), "the ways read other values"
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = [*ways] if number % 2 else [*reversed(ways)]
        for name in order:
            began = time.process_time()
            ways[name]()
            spent[name].append(time.process_time() - began)
    base = spent["plain hooks"]
    return {
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in spent.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(values, base, strict=True)) for name, values in spent.items()
        },
    }


class Live(TorchDispatchMode):
    """While open, counts the bytes of tensors that were made since and are still alive; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id_of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and id_of(value) not in before | self._known:
                self._add(value)
        return out

    def _add(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), id_of(value)
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def id_of(value: Tensor) -> int:
    """The same for all tensors that share a storage."""
    return value.untyped_storage()._cdata


def long_items(count: int, tokens: int) -> list[Item]:
    """Items whose prompts have about as many tokens."""
    filler = "Where is the red circle relative to the blue square?\n"
    return [replace(item, question=filler * (tokens // 11) + item.question) for item in shapes(count, seed=0)]


@torch.no_grad()
def memory(
    layers: int, width: int, items: int, tokens: int, names: Any = "resid_post", positions: Role = latent
) -> dict[str, Any]:
    """Peak bytes of a cache above its forwards, and the bytes that were asked for."""
    model = random_model(layers, width)
    run = model.generate(long_items(items, tokens))
    with Live() as bare:
        for start in range(0, items, model.batch_size):
            part = take(run.unrolled, slice(start, start + model.batch_size))
            pixels = model.engine.pixels(model.processor(part.items))
            model.hf.step(**replay_inputs(model.hf, part), **model.hf.vision_inputs(*pixels), keep=slice(0))  # type: ignore[arg-type]
    began = time.process_time()
    with Live() as whole:
        _, cache = model.run_with_cache(run.items, names, positions=positions, run=run, return_type=None)
    seconds = time.process_time() - began
    asked = sum(cache.flat(name).nbytes for name in cache)
    width_all = run.unrolled.shape[1]
    layer = model.batch_size * width_all * width * 4
    above = whole.peak - bare.peak
    return {
        "items": items, "prompt tokens": run.unrolled.n_prompt, "layers": layers, "width": width, "asked": asked,
        "one layer": layer, "bare peak": bare.peak, "peak": whole.peak, "above": above, "kept after": whole.now,
        "limit": LIMIT * asked + layer, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"speed": {}, "memory": []}
    for name, (layers, width, times, wanted) in SPEED.items():
        line = found["speed"][name] = {**speed(layers, width, times * asked.rounds), "wanted": wanted}
        shown = ", ".join(f"{way} {ratio:.3f}" for way, ratio in line["ratio"].items())
        print(f"{name}: to plain hooks {shown}; wanted {wanted}", flush=True)
    for items, tokens in ((asked.items, asked.tokens), (asked.items // 2, asked.tokens), (asked.items, 250)):
        line = memory(4, 64, items, tokens)
        found["memory"].append(line)
        print(
            f"{items} items, prompts of {line['prompt tokens']}: asked {line['asked']:,}, above the bare forward "
            f"{line['above']:,}, limit {line['limit']:,.0f}, kept {line['kept after']:,}; {line['seconds']:.1f} s",
            flush=True,
        )
    if asked.json is not None:
        asked.json.write_text(json.dumps({**found, "environment": environment_manifest()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
