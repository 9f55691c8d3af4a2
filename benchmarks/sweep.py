"""Cost of a corruption sweep against the published procedure and against its floor; every ratio from one run.

    python benchmarks/sweep.py --json benchmarks/records/sweep.json
    python benchmarks/sweep.py --size tiny --items 191

- *published*: batch size 1, and for every condition each item's prompt is computed again; a plain loop without any
  hooks. It runs on the first `--published` items and is scaled to all, which is exact for batches of one.
- *floor*: every prompt's forward once, and the decode steps of the clean run and of all conditions, at the batch that
  the sweep decodes at, without edits, records or anything else.
- *memory*: peak of a fresh process with six and with twenty-four conditions.

Figures are medians over rounds of processor seconds on one thread; the sides take turns, so that a busy machine slows
all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismlens.data.load import load_items
from prismlens.experiment import CLEAN, run_conditions
from prismlens.experiment.plan import Plan, image_tokens
from prismlens.interventions import Context, Edit, Noise, Operation, Swap, match_donors, paper_conditions
from prismlens.models.loop import Forward, decode, plain_forward, prefill, unroll
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.prefix import gather
from prismlens.results import environment_manifest
from prismlens.trace import PrismModel, load
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled

Conditions = Mapping[str, tuple[Edit, ...]]
PROMPT = 600
"""Tokens of the longest prompt at the larger size."""
SEVERAL = 24
"""Conditions of the second measurement of memory."""
Latents = Mapping[str, Tensor]
"""Item id -> its clean latents ``[step, d_model]``."""


def six(n: int) -> Conditions:
    """The five published conditions, the pool of donors no larger than the items, and a swap to another answer."""
    own = paper_conditions()
    op = own["swap"][0].op
    assert isinstance(op, Swap) and op.pool is not None
    swap = replace(own["swap"][0], op=replace(op, pool=min(op.pool, n)))
    return {**own, "swap": (swap,), "swap, other answer": (Edit(Swap(donor="different-answer")),)}


def tiny(n: int) -> tuple[PrismModel, list[Item]]:
    """The shipped model and scenes."""
    return load("tiny/lvr"), list(load_items("shapes", n=n))


def larger(n: int) -> tuple[PrismModel, list[Item]]:
    """Random weights, 12 layers x 512, and questions so long that the longest prompt has `PROMPT` tokens."""
    processor = tiny_processor(start=True)
    hf = LVRForConditionalGeneration(tiny_config(processor.tokenizer, width=512, layers=12, latent_steps=4)).eval()
    initialise(hf, 0)
    model = PrismModel(hf, processor, "12 x 512, random weights", max_new_tokens=6)
    items = list(load_items("shapes", n=n))
    longest = max(len(processor.encode(item, image_tokens(processor, item)).ids) for item in items)
    return model, [replace(one, question=one.question + " color" * (PROMPT - longest)) for one in items]


SIZES: Mapping[str, Callable[[int], tuple[PrismModel, list[Item]]]] = {"tiny": tiny, "12x512": larger}


def published(
    model: PrismModel,
    items: Sequence[Item],
    conditions: Conditions,
    donors: Mapping[str, Mapping[str, str]],
    clean: Latents,
) -> dict[str, list[str]]:
    """The published procedure: one item at a time, its prompt anew for every condition.

    Args:
        model: the model.
        items: to run.
        conditions: each of one edit.
        donors: condition -> item id -> donor.
        clean: the latents of everyone who may be a donor.

    Returns:
        Condition -> the text of every item.
    """
    texts: dict[str, list[str]] = {}
    for name, edits in {CLEAN: (), **conditions}.items():
        texts[name] = []
        for item in items:
            donor = clean.get(donors.get(name, {}).get(item.id, ""))
            forward = changing(model, edits[0], item, donor) if edits else plain_forward(model.hf)
            run = unroll(model.hf, model.processor([item]), model.settings(), forward=forward)
            texts[name].append(text_of(model, run))
    return texts


def changing(model: PrismModel, edit: Edit, item: Item, donor: Tensor | None) -> Forward:
    """The model's own forward, with the latent that is fed replaced."""
    inner, op = plain_forward(model.hf), edit.op
    assert isinstance(op, Operation)

    def forward(run: Unrolled, n_queries: int, **inputs: Any):
        vectors = inputs.get("latents")
        if vectors is not None:
            steps = run.steps[:, -1]
            own = None if donor is None else donor[steps]
            context = Context((item.id,), steps, donors=own, seed=edit.seed, site=edit.site)
            inputs["latents"] = op(vectors[:, 0], context)[:, None]
        return inner(run, n_queries, **inputs)

    return forward


def text_of(model: PrismModel, run: Unrolled) -> str:
    """What was written, as records have it."""
    ids = run.input_ids[0][run.segments[0] == Segment.ANSWER].tolist()
    return model.processor.decode(ids, skip_special_tokens=True).strip()


def floor(model: PrismModel, items: Sequence[Item], plan: Plan, n_conditions: int) -> float:
    """Seconds of every prompt's forward, and of as many decoded rows as the clean run and the conditions have."""
    spent = 0.0
    for unit in plan.units:
        began = time.process_time()
        prefix = prefill(model.hf, model.processor(items[unit]), model.settings())
        spent += time.process_time() - began
        rows = range(len(prefix.run.items))
        began = time.process_time()
        decode(model.hf, gather(model.hf, [(prefix, rows)] * plan.slots), model.settings())
        spent += (time.process_time() - began) * (1 + n_conditions) / plan.slots
    return spent


def measured(size: str, n: int, n_published: int, rounds: int) -> dict[str, Any]:
    """All figures of one size."""
    model, items = SIZES[size](n)
    run, conditions = model.generate(items), six(n)
    clean = {item.id: run.latents[row] for row, item in enumerate(items)}
    swaps = {name: edits[0] for name, edits in conditions.items() if isinstance(edits[0].op, Swap)}
    donors = {name: match_donors(items, edit.op, seed=edit.seed) for name, edit in swaps.items()}
    some, sides = items[:n_published], {"published": [], "sweep": [], "floor": []}
    for _ in range(rounds):
        began = time.process_time()
        texts = published(model, some, conditions, donors, clean)
        sides["published"].append((time.process_time() - began) * n / n_published)
        began = time.process_time()
        found = run_conditions(model, items, conditions)
        sides["sweep"].append(time.process_time() - began)
        plan = Plan(**{key: found.manifest["plan"][key] for key in Plan.__dataclass_fields__})
        sides["floor"].append(floor(model, items, plan, len(conditions)))
    seconds = {side: statistics.median(spent) for side, spent in sides.items()}
    rows = found.rows.set_index(["condition", "item"])
    same = [rows.text[name, item.id] == text for name in texts for item, text in zip(some, texts[name], strict=True)]
    return {
        "size": size, "items": n, "conditions": len(conditions), "published_items": n_published, "rounds": rounds,
        "prompt_tokens": run.unrolled.n_prompt, "seconds": seconds, "plan": found.manifest["plan"],
        "times_faster_than_published": seconds["published"] / seconds["sweep"],
        "ratio_to_floor": seconds["sweep"] / seconds["floor"],
        "same_texts": sum(same), "compared_texts": len(same),
        "peak_mib": {str(count): peak(size, n, count) for count in (len(conditions), SEVERAL)},
    }  # fmt: skip


def peak(size: str, n: int, count: int) -> float:
    """Peak memory in MiB of a fresh process that runs so many conditions."""
    done = subprocess.run(
        [sys.executable, __file__, "--size", size, "--items", str(n), "--peak", str(count)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def print_peak(size: str, n: int, count: int) -> None:
    """What the process of `peak` does."""
    model, items = SIZES[size](n)
    run_conditions(model, items, {f"noise {i}": (Edit(Noise(0.1 * i)),) for i in range(count)})
    # Not getrusage: its peak is handed on from the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def main() -> None:
    """Measure, print a line a size, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--items", type=int, nargs="+", default=[191, 12], help="one number a size")
    parser.add_argument("--published", type=int, default=6, help="items that the published procedure is timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak is not None:
        return print_peak(given.size[0], given.items[0], given.peak)
    results = []
    for size, n in zip(given.size, given.items, strict=True):
        line = measured(size, n, given.published, given.rounds)
        results.append(line)
        print(
            f"{size}, {n} items, {line['prompt_tokens']} prompt tokens: "
            f"{line['times_faster_than_published']:.1f} x faster than published, "
            f"{line['ratio_to_floor']:.2f} x the floor, "
            f"{line['same_texts']} of {line['compared_texts']} texts the same, peak {line['peak_mib']} MiB",
            flush=True,
        )
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"results": results, "environment": environment_manifest()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
