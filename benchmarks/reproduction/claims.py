"""The paper's three claims against the records, each by a stated rule on intervals; draws no picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from estimates import Correlation, Estimate, over_items_and_seeds
from records import CONDITIONS, PUBLISHED

MARGIN = 0.05
"""A change of accuracy that counts as none."""
RULES = f"""The rules: (1) *holds* where the interval of r over seeds lies below 0, the exact p over the orders of the
variants is below .05, and no variant alone turns the sign; *contradicted* where all that is so above 0; *open*
otherwise, and with one seed. (2) A condition is *within* where the interval of its change, averaged over the variants,
lies inside ±{MARGIN:g}, *outside* where it lies wholly outside, *open* otherwise. (3) is given in numbers: the majority
rate is near .25.
"""


def cosine_misleads(found: Correlation | None, seeds: int) -> str:
    """Claim 1 in a word, with its numbers."""
    if found is None or found.n < len(PUBLISHED):
        return f"open: {0 if found is None else found.n} of {len(PUBLISHED)} variants are measured"
    numbers = f"r = {found.pearson:+.2f} [{found.low:+.2f}, {found.high:+.2f}], exact p {found.p:.2f}"
    if seeds < 2:
        return f"open: {numbers}, one seed"
    sure = found.p < 0.05 and found.apart[0] * found.apart[1] > 0
    word = "holds" if sure and found.high < 0 else "contradicted" if sure and found.low > 0 else "open"
    return f"{word}: {numbers}"


def changes(names: Sequence[str], items: Mapping[str, pd.DataFrame]) -> dict[str, Estimate]:
    """Condition -> mean change over these models, with its interval over items and models."""
    return {one: over_items_and_seeds([items[name] for name in names], one) for one in CONDITIONS}


def breaking_is_harmless(found: Mapping[str, Estimate]) -> str:
    """Claim 2, condition by condition."""
    words: dict[str, list[str]] = {"within": [], "outside": [], "open": []}
    for name, one in found.items():
        inside = one.low > -MARGIN and one.high < MARGIN
        word = "within" if inside else "outside" if one.high < -MARGIN or one.low > MARGIN else "open"
        words[word].append(name if word == "within" else f"{name} {one}")
    return "; ".join(f"{word}: {', '.join(own)}" for word, own in words.items() if own)


def answer_is_not_in_latents(models: pd.DataFrame) -> str:
    """Claim 3: the published gap, and the one to the best injected latent, over all these models."""
    out = []
    for reading in ("paper", "best"):
        own = models[f"gap ({reading})"].dropna().to_numpy() if f"gap ({reading})" in models else np.array([])
        if not len(own):
            return "open: no gap is measured"
        latent = models[f"latent ({reading})"].dropna()
        out.append(
            f"gap ({reading}) {own.mean():+.2f}, {own.min():+.2f} to {own.max():+.2f} over {len(own)} models, "
            f"latent {latent.mean():.2f}"
        )
    return "; ".join(out)
