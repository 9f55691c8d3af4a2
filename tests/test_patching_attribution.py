"""Attribution against finite differences, and its arithmetic."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from prismlens.data.pairs import load_pairs
from prismlens.errors import SettingError
from prismlens.patching import patching_sweep
from prismlens.positions import Role, image, latent, question
from tests.plain_hooks import Twins, hooked, plain_run, reading, twins, whole

PAIRS = load_pairs("shapes", 2, seed=6)
ROLES: list[Role] = [image, question[-1], latent, latent[1]]


def two_ids(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@pytest.fixture(scope="module")
def pair() -> Twins:
    out = twins(seed=4)
    out.traced.hf.double()
    out.plain.double()
    return out


def sweep(pair: Twins, name: str, **keywords):
    keywords = {"metric": two_ids, "min_gap": 1e-12, "positions": ROLES, "method": "both", **keywords}
    return patching_sweep(pair.traced, PAIRS.clean, PAIRS.corrupted, name, **keywords)


@pytest.mark.parametrize("name", ["resid_pre", "resid_mid", "mlp_out", "latent"])
def test_it_is_the_slope_of_the_metric_along_the_patch(pair, name: str):
    """A hundredth of the patch changes the metric by a hundredth of the attributed change (norms are float32 inside)."""
    roles = [latent, latent[1]] if name == "latent" else ROLES
    rows = sweep(pair, name, positions=roles, method="attribution").rows
    found = (rows if name == "latent" else rows[rows.layer == 1]).set_index(["pos", "pair"])
    site = "hook_latent" if name == "latent" else f"blocks.1.hook_{name}"
    clean, corrupted = plain_run(pair, [*PAIRS.clean])[0], plain_run(pair, [*PAIRS.corrupted])[0]
    source = _sources(pair, clean, corrupted)
    with torch.no_grad(), reading(pair.plain, [site]) as kept:
        for run in (clean, corrupted):
            pair.plain.step(**whole(pair, run))
    for role in roles:
        mask = role.mask(clean) | role.mask(corrupted)
        if name == "latent":
            mask = torch.stack([mask[row, clean.steps[row] >= 0] for row in range(len(PAIRS))])
        step = (kept[site][0] - kept[site][1]) * mask[..., None]
        ends = [_metric(pair, corrupted, source, site, step * share) for share in (1e-2, -1e-2)]
        slope = (ends[0] - ends[1]) / 2e-2
        for row, one in enumerate(PAIRS):
            cell = found.loc[(str(role), one.clean.id)]
            assert cell.attributed - cell.corrupted == pytest.approx(float(slope[row]), rel=2e-3, abs=3e-5)
        assert float(slope.abs().max()) > (1e-2 if role is image else 1e-4) or role == latent[1], (
            "the patch does something"
        )


@torch.no_grad()
def _metric(pair: Twins, run, source: list[int], site: str, shift: Tensor) -> Tensor:
    with hooked(pair.plain, site, lambda value: value + shift):
        hidden = pair.plain.step(**whole(pair, run)).hidden
    return two_ids(pair.plain.lm_head(torch.stack([hidden[row, column] for row, column in enumerate(source)])))


def _sources(pair: Twins, clean, corrupted) -> list[int]:
    """The column before the first token that differs, or before the answer's first."""
    firsts = [pair.traced.generate([*side]).unrolled.answer_first.tolist() for side in (PAIRS.clean, PAIRS.corrupted)]
    out = []
    for row, (a, b) in enumerate(zip(clean.input_ids.tolist(), corrupted.input_ids.tolist(), strict=True)):
        apart = [c for c, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        out.append(min([*apart, *(first[row] for first in firsts if first[row] >= 0)]) - 1)
    return out


def test_places_add_up_and_the_exact_ones_do_not(pair):
    found = sweep(pair, "resid_pre", positions=[latent[0], latent[1], latent[2], latent])
    parts = found.attribution[:, :3].sum(1)
    assert torch.allclose(parts, found.attribution[:, 3], atol=1e-9)
    assert not torch.allclose(found.tensor[:, :3].sum(1), found.tensor[:, 3], atol=1e-3)


def test_both_methods_stand_side_by_side_with_their_error(pair):
    both, exact, slope = (sweep(pair, "resid_mid", method=method) for method in ("both", "exact", "attribution"))
    assert torch.equal(both.tensor, exact.tensor) and torch.allclose(both.attribution, slope.attribution, atol=1e-9)
    error = both.attribution_error()
    gaps = (both.tensor - both.attribution).abs()
    assert error.max_abs == pytest.approx(float(gaps.max())) and error.mean_abs == pytest.approx(float(gaps.mean()))
    ranks = [rankdata(x.flatten().numpy()) for x in (both.tensor, both.attribution)]
    assert error.rank_correlation == pytest.approx(float(np.corrcoef(*ranks)[0, 1])) and error.n_cells == gaps.numel()


def test_it_leaves_nothing_behind(pair):
    sweep(pair, "resid_mid", method="attribution")
    assert all(parameter.grad is None for parameter in pair.traced.hf.parameters())
    assert torch.is_grad_enabled()


def test_a_metric_without_a_gradient_is_refused(pair):
    with pytest.raises(SettingError, match="a metric without a gradient"):
        sweep(pair, "mlp_out", metric=lambda logits: two_ids(logits).detach())
