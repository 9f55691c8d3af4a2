"""The diagnostics in a few numbers for a model that is still training: a function of a model, made for fixed items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prismlens.alignment import FORCED, FREE, alignment
from prismlens.corruption import corruption_test
from prismlens.decodability import decodability
from prismlens.interventions import DeleteKV, Edit, Swap, Zero
from prismlens.trace import PrismModel
from prismlens.types import Item

CONDITIONS = {
    "zero": (Edit(Zero()),),
    "swap": (Edit(Swap(donor="answer-in-options")),),
    "slots_deleted": (Edit(DeleteKV()),),
}
"""The conditions that are watched: two on the injected vectors, one on the slots."""


def monitor(items: Sequence[Item], *, seed: int = 0, gap: bool = True) -> Callable[[PrismModel], Mapping[str, float]]:
    """A function for `PrismCallback`: what the latents of a model are like, on the same held-out items every time.

    Its numbers, each with ``_low`` and ``_high`` where an interval is known: ``accuracy``; for every condition of
    `CONDITIONS` the change in accuracy, and for ``swap`` how often the answer follows the donor (``swap_follow``);
    ``cosine_free`` and ``cosine_forced`` with their floors (``_other``); ``gap``, the decodability of the answer's
    content at the answer's source minus that at the best latent, where `gap` asks for it. A model without latents has
    an accuracy alone.

    Args:
        items: held-out, with options, answers and boxes.
        seed: of donors and intervals.
        gap: fit probes too; they need some tens of items of every answer.
    """

    def diagnose(model: PrismModel) -> dict[str, float]:
        if model.hf.config.latent_entry == "none":
            run = model.generate(items)
            return {"accuracy": sum(map(bool, run.correct)) / len(items)}
        test = corruption_test(model, items, conditions=CONDITIONS, seed=seed, on_missing="drop").frame()
        out = {"accuracy": test.loc["clean", "accuracy"]}
        for name in CONDITIONS:
            out |= {f"{name}{end}": test.loc[name, f"change{end}"] for end in ("", "_low", "_high")}
        out["swap_follow"] = test.loc["swap", "follow"]
        near = alignment(model, items, seed=seed, on_missing="drop").frame()
        for mode, short in ((FREE, "free"), (FORCED, "forced")):
            out |= {f"cosine_{short}{end}": near.loc[mode, f"cosine{end}"] for end in ("", "_other", "_low", "_high")}
        if gap:
            probes = decodability(
                model, items, target="content", layers=[], n_permutations=0, n_controls=0, seed=seed, on_rare="drop"
            )
            best = probes.gap().set_index("reading").loc["best"]
            out |= {"gap": best.gap, "gap_low": best.low, "gap_high": best.high}
        return {name: float(value) for name, value in out.items()}

    return diagnose
