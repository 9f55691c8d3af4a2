"""Worlds without an effect, and with a planted one, for every test of the instrument; each gives yes or no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats as scipy_stats

import prismlens.stats as stats
from prismlens.probes import Protocol, evaluate, map_p, permutation_p

GROUPS, MANY = np.repeat(np.arange(50), 2), np.repeat(np.arange(250), 2)
"""100 and 500 items, two a scene, as the rendered scenes have them. With 100, six or so answers change, and the size of
an exact test of so few is well below 5 %; with 500 it comes close."""
RESAMPLES = 999
MARGIN = 0.05
PROBE = Protocol("simulated", (1e-4, 1e-3, 1e-2, 1e-1), folds=5)


@dataclass(frozen=True)
class Simulation:
    """One line of the table.

    Args:
        what: what is tested, in words.
        world: what is true.
        kind: ``"null"``: yes is an error, at most at the rate `stated`; ``"power"``: yes is a find, at least at that
            rate; ``"exact"``: the rate itself.
        stated: the rate.
        worlds: how many are drawn.
        draw: a generator -> whether the test said yes.
    """

    what: str
    world: str
    kind: str
    stated: float
    worlds: int
    draw: Callable[[np.random.Generator], bool]


def pair(
    rng: np.random.Generator, change: float = 0.0, noise: float = 0.1, groups: np.ndarray = GROUPS
) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong of every item before and after.

    Scenes differ in difficulty, answers that were wrong come right at the rate `noise`, and right ones go wrong as
    often as it takes for accuracy to change by `change`.
    """
    n = len(groups)
    before = rng.random(n) < rng.beta(7, 3, groups.max() + 1)[groups]
    after = np.where(before, rng.random(n) >= loss_rate(change, noise), rng.random(n) < noise)
    return before.astype(float), after.astype(float)


def loss_rate(change: float, noise: float) -> float:
    """How often a right answer goes wrong in `pair`; mean accuracy is 7 / (7 + 3)."""
    return (0.3 * noise - change) / 0.7


def power(change: float, noise: float = 0.1, n: int = len(MANY)) -> float:
    """Of the exact two-sided sign test at 5 % in the world of `pair`, were its items independent.

    Of n items Binomial(n, gain + loss) change, and of those Binomial(changed, loss / (gain + loss)) are losses. Changes
    of accuracy are whole numbers of items, so that an exact test finds less than a z-test promises.
    """
    gain, loss = 0.3 * noise, 0.7 * loss_rate(change, noise)
    binom, total = scipy_stats.binom, 0.0
    for changed in range(n + 1):
        losses = np.arange(changed + 1)
        p = np.minimum(1, 2 * binom.cdf(np.minimum(losses, changed - losses), changed, 0.5))
        found = binom.pmf(losses[p <= 0.05], changed, loss / (gain + loss)).sum()
        total += float(binom.pmf(changed, n, gain + loss) * found)
    return total


def paired_p(rng: np.random.Generator) -> bool:
    """The permutation test of a paired difference."""
    return stats.paired_difference(*pair(rng), GROUPS, n_resamples=RESAMPLES, seed=0).p <= 0.05


def rejected(rng: np.random.Generator, change: float = 0.0) -> bool:
    """The permutation test of a paired difference, 500 items."""
    return stats.paired_difference(*pair(rng, change, groups=MANY), MANY, n_resamples=RESAMPLES, seed=0).p <= 0.05


def missed(rng: np.random.Generator) -> bool:
    """The interval of a paired change, 500 items."""
    found = stats.paired_difference(*pair(rng, -0.05, groups=MANY), MANY, n_resamples=RESAMPLES, seed=0)
    return not stats.covers(found, -0.05)


def equal_at_margin(rng: np.random.Generator) -> bool:
    """Equivalence, where the change is exactly the margin, 500 items."""
    return stats.equivalence(*pair(rng, -MARGIN, groups=MANY), MANY, margin=MARGIN).equivalent


def exact_p(rng: np.random.Generator) -> bool:
    """McNemar's exact test."""
    return stats.mcnemar_exact(*(one.astype(bool) for one in pair(rng))).p <= 0.05


def swept(rng: np.random.Generator) -> bool:
    """Eight conditions that change one answer in ten to a fresh draw, under one correction."""
    before, _ = pair(rng)
    flips = [np.where(rng.random(100) < 0.1, rng.random(100) < 0.7, before).astype(float) for _ in range(8)]
    p = [stats.paired_difference(before, one, GROUPS, n_resamples=RESAMPLES, seed=0).p for one in flips]
    return bool(stats.holm(np.array(p)).min() <= 0.05)


def outside(rng: np.random.Generator) -> bool:
    """The interval of an accuracy."""
    right = rng.random(100) < rng.beta(7, 3, 50)[GROUPS]
    return not stats.covers(stats.cluster_mean_interval(right, GROUPS, n_resamples=RESAMPLES, seed=0), 0.7)


def change_outside(rng: np.random.Generator) -> bool:
    """The interval of a paired change."""
    found = stats.paired_difference(*pair(rng, -0.1), GROUPS, n_resamples=RESAMPLES, seed=0)
    return not stats.covers(found, -0.1)


def called_equal(rng: np.random.Generator) -> bool:
    """Equivalence, where the change is exactly the margin."""
    return stats.equivalence(*pair(rng, -MARGIN), GROUPS, margin=MARGIN).equivalent


def planted_loss(rng: np.random.Generator) -> bool:
    """A loss of 3.0 standard errors, sqrt((.03 + .15 - .12^2) / 100): a z-test would find it in .84 of worlds."""
    return stats.paired_difference(*pair(rng, -0.12), GROUPS, n_resamples=RESAMPLES, seed=0).p <= 0.05


def probed(rng: np.random.Generator, strength: float = 0.0, places: int = 3) -> tuple[dict, dict, list]:
    """Accuracies, nulls and cells of a map of 60 items in 30 scenes; the first place knows the label."""
    codes, groups = rng.permutation(np.repeat(np.arange(3), 20)), np.repeat(np.arange(30), 2)
    features = {str(place): rng.normal(size=(60, 20)) for place in range(places)}
    features["0"][:, :3] += strength * np.eye(3)[codes]
    cells = evaluate(
        features, codes.tolist(), groups, protocol=PROBE, n_permutations=39, n_controls=3,
        seed=int(rng.integers(2**31)), jobs=1,
    )  # fmt: skip
    seen = {name: float(cell.correct.mean()) for name, cell in cells.items()}
    return seen, {name: cell.null for name, cell in cells.items()}, list(cells.values())


def one_place(rng: np.random.Generator) -> bool:
    """The permutation p of one place."""
    seen, nulls, _ = probed(rng, places=1)
    return permutation_p(seen["0"], nulls["0"]) <= 0.05


def anywhere(rng: np.random.Generator) -> bool:
    """The corrected p of a whole map."""
    seen, nulls, _ = probed(rng)
    return min(map_p(seen, nulls).values()) <= 0.05


def selective(rng: np.random.Generator) -> bool:
    """The interval of selectivity."""
    cell = probed(rng, places=1)[2][0]
    gap = cell.correct - cell.control
    interval = stats.cluster_mean_interval(gap, np.repeat(np.arange(30), 2), n_resamples=RESAMPLES, seed=0)
    return not stats.covers(interval, 0)


def planted_direction(rng: np.random.Generator) -> bool:
    """The corrected p of the place that knows the label."""
    seen, nulls, _ = probed(rng, strength=2.5)
    return map_p(seen, nulls)["0"] <= 0.05


NOTHING = "two conditions, neither better"
SIMULATIONS: Mapping[str, Simulation] = {
    "paired": Simulation("paired permutation p <= .05, by scene", NOTHING, "null", 0.05, 1000, paired_p),
    "mcnemar": Simulation("exact McNemar p <= .05", NOTHING, "null", 0.05, 1000, exact_p),
    "holm": Simulation("any of 8 conditions, p <= .05 after Holm", "none changes accuracy", "null", 0.05, 100, swept),
    "interval": Simulation("95 % interval of accuracy misses it", "accuracy .7", "null", 0.05, 1000, outside),
    "change": Simulation("95 % interval of a change misses it", "change -.10", "null", 0.05, 1000, change_outside),
    "equivalence": Simulation("called equal within .05", "change -.05, the margin", "null", 0.05, 1000, called_equal),
    "null500": Simulation(
        "paired permutation p <= .05, 500 items", NOTHING + "; rate: computed", "exact", power(0.0), 1000, rejected
    ),
    "change500": Simulation("95 % interval of a change misses it, 500", "change -.05", "exact", 0.05, 1000, missed),
    "equal500": Simulation(
        "called equal within .05, 500 items", "change -.05, the margin", "null", 0.05, 1000, equal_at_margin
    ),
    **{
        f"planted{points:02d}": Simulation(
            "paired permutation p <= .05, 500 items", f"change -.{points:02d}; rate: computed", "exact",
            power(-points / 100), 500, partial(rejected, change=-points / 100),
        )
        for points in (2, 5, 10)
    },
    "loss": Simulation("paired permutation p <= .05", "change -.12: 3.0 se", "power", 0.8, 500, planted_loss),
    "probe": Simulation("probe's permutation p <= .05, C chosen", "labels are random", "null", 0.05, 200, one_place),
    "map": Simulation("any of 3 places, p <= .05 by max statistic", "labels are random", "null", 0.05, 200, anywhere),
    "selectivity": Simulation("95 % interval of selectivity misses 0", "random labels", "null", 0.05, 200, selective),
    "direction": Simulation(
        "place found, p <= .05 by max statistic", "class means 3.5 sd apart, 20 dimensions, 60 items", "power", 0.8,
        60, planted_direction,
    ),
}  # fmt: skip
"""Every simulation under the name of its record."""


def count(name: str) -> dict[str, object]:
    """How often the test said yes."""
    one = SIMULATIONS[name]
    rng = np.random.default_rng(list(name.encode()))
    yes = sum(bool(one.draw(rng)) for _ in range(one.worlds))
    exact = scipy_stats.binomtest(yes, one.worlds).proportion_ci(0.95, "exact")
    return {
        "what": one.what, "world": one.world, "kind": one.kind, "stated": one.stated, "worlds": one.worlds, "yes": yes,
        "low": exact.low, "high": exact.high,
    }  # fmt: skip
