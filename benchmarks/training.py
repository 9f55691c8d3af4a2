"""Cost of training, as ratios measured in one run: trainer to bare loop, cached tower to none, packs to padded rows.

    python benchmarks/training.py --json benchmarks/records/training.json

Every figure is a median over steps; the two sides of a ratio take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prismlens.data.load import load_items
from prismlens.models.checkpoint import load_checkpoint
from prismlens.results import environment_manifest
from prismlens.training.batch import Batch
from prismlens.training.layout import collate
from prismlens.training.module import TrainingModule
from prismlens.training.prepare import prepare
from prismlens.training.settings import TINY_RUN, TrainSettings
from prismlens.training.sources import ItemSource, SceneSource
from prismlens.training.trainer import make_trainer
from prismlens.training.variants import VARIANTS, Variant

LVR = VARIANTS["lvr"]


def module_and_data(source: Any, settings: TrainSettings, variant: Variant) -> tuple[TrainingModule, Any, Callable]:
    """A fresh module from tiny/base, its packs, and how they are laid out."""
    base, processor = load_checkpoint("tiny/base")
    ready = prepare(base, processor, variant, latent_steps=settings.latent_steps, protocol=settings.protocol)
    data = source.packs(ready, variant, settings)
    lay_out = partial(collate, width=ready.model.config.text.hidden_size, waves=False)
    return TrainingModule(ready.model, variant, settings).train(), data, lay_out


def bare_steps(module: TrainingModule, data: Any, lay_out: Callable, batch: int) -> Iterator[float]:
    """A training loop in plain PyTorch, making its own batches; yields the seconds of every step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    for start in range(0, len(data), batch):
        began = time.perf_counter()
        laid: Batch = lay_out([data[i] for i in range(start, start + batch)])
        weights = torch.tensor(module.weights(laid.phase))
        loss = (module(laid) / module.counts(laid).clamp(min=1) * weights).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield time.perf_counter() - began


def trainer_steps(module: TrainingModule, data: Any, lay_out: Callable, settings: TrainSettings) -> list[float]:
    """Seconds of every step of the trainer, from the end of one to the end of the next."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(module, data, lay_out, Path(folder), settings, progress=False)
        trainer.lr_scheduler = None
        original = trainer.training_step

        def timed(*args: Any, **kwargs: Any) -> Any:
            ends.append(time.perf_counter())
            return original(*args, **kwargs)

        trainer.training_step = timed
        trainer.train()
    return [later - earlier for earlier, later in pairwise(ends)]


def against_bare(steps: int) -> dict[str, float]:
    """The trainer's step to the bare loop's, on rendered scenes with cached features."""
    settings = replace(TINY_RUN, steps=steps, save_every=10_000, log_every=10)
    source = SceneSource(count=240)
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(3):
        module, data, lay_out = module_and_data(source, settings, LVR.scaled(steps))
        ours += trainer_steps(module, data, lay_out, settings)[1:]
        module, data, lay_out = module_and_data(source, settings, LVR.scaled(steps))
        bare += list(bare_steps(module, data, lay_out, settings.batch))[2:]
    a, b = statistics.median(ours), statistics.median(bare)
    return {"trainer_step_s": a, "bare_step_s": b, "ratio": a / b}


def cached_tower(steps: int) -> dict[str, float]:
    """The step that runs the frozen tower to the step that reads its outputs from disk, and the same for the part that
    differs: getting the features of a batch of 24 images."""
    settings = replace(TINY_RUN, steps=steps, batch=24, pack_items=1, facts=0.0)
    items = load_items("shapes", n=240)
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cache in (("cached", Path(folder)), ("uncached", None)):
            source = ItemSource(items, "shapes items", cache=cache)
            module, data, lay_out = module_and_data(source, settings, LVR.scaled(steps))
            spent = list(bare_steps(module, data, lay_out, settings.batch))[1:]
            medians[f"{name}_step_s"] = statistics.median(spent)
            got = []
            for start in range(0, len(data), settings.batch):
                began = time.perf_counter()
                laid: Batch = lay_out([data[i] for i in range(start, start + settings.batch)])
                if laid.pixels is not None:
                    with torch.no_grad():
                        module.lm.image_features(laid.pixels, laid.grid_thw)
                got.append(time.perf_counter() - began)
            medians[f"{name}_features_s"] = statistics.median(got)
    return {
        **medians,
        "features_ratio": medians["uncached_features_s"] / medians["cached_features_s"],
        "ratio": medians["uncached_step_s"] / medians["cached_step_s"],
    }


def packed_rows(steps: int) -> dict[str, float]:
    """Seconds an item on questions of mixed lengths: padded rows of one item each, to packs as long as the longest."""
    items = [
        replace(item, question="Look at the picture. " * (i % 8) + item.question)
        for i, item in enumerate(load_items("shapes", n=240))
    ]
    seconds, longest = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("padded", "packed"):
            limits = {"pack_items": 1} if name == "padded" else {"pack_items": 8, "pack_tokens": longest}
            settings = replace(TINY_RUN, steps=steps, batch=24 if name == "padded" else 12, facts=0.0, **limits)
            source = ItemSource(items, "mixed lengths", cache=Path(folder))
            module, data, lay_out = module_and_data(source, settings, LVR.scaled(steps))
            longest = max(longest, *(len(data.group(i)) for i in range(len(items))))
            size = settings.batch
            counts = [sum(len(pack) for pack in data.packs[s * size : (s + 1) * size]) for s in range(steps)]
            spent = list(bare_steps(module, data, lay_out, size))
            seconds[name] = statistics.median(t / n for t, n in zip(spent[1:], counts[1:], strict=True))
    return {
        **{f"{name}_item_s": value for name, value in seconds.items()},
        "longest": longest,
        "ratio": seconds["padded"] / seconds["packed"],
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "trainer / bare loop": against_bare(given.steps),
        "uncached / cached tower": cached_tower(given.steps),
        "padded / packed": packed_rows(given.steps),
    }
    for name, values in results.items():
        print(f"{name:26s} {values['ratio']:.2f}   " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    if given.json is not None:
        given.json.write_text(json.dumps({"results": results, "environment": environment_manifest()}, indent=1))


if __name__ == "__main__":
    main()
