"""Statistics of a sweep from rows written by hand, alignment and refusals."""

import math
import re

import pandas as pd
import pytest
import torch

import prismlens as pl
from prismlens.data.pairs import load_pairs
from prismlens.errors import EditError, ItemError, PrismlensError, ResultsError, RoleError, SettingError
from prismlens.interventions import Edit, Zero
from prismlens.patching import PatchingSweep, patching_sweep
from prismlens.patching.cells import SWEEPS
from prismlens.positions import image, latent, question
from prismlens.results import Results
from prismlens.stats import cluster_mean_interval
from tests.plain_hooks import twins

PAIRS = load_pairs("shapes", 3, seed=6)
MANIFEST = {
    "axes": {"layer": [0, 1], "pos": ["latent", "image"]}, "excluded": {"no answer": ["d", "e"]}, "method": "both",
}  # fmt: skip


def row(pair: str, layer: int, pos: str, patched: float, attributed: float, clean: float, corrupted: float) -> dict:
    return {
        "pair": pair, "corrupted_item": f"{pair}'", "group": pair, "site": "hook_resid_pre", "layer": layer, "pos": pos,
        "head": None, "at": "answer", "clean": clean, "corrupted": corrupted, "patched": patched, "attributed": attributed,
    }  # fmt: skip


def by_hand(rows: list[dict]) -> PatchingSweep:
    return PatchingSweep(Results(pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"}), MANIFEST), seed=3)


ROWS = [
    row("a", 0, "latent", 2.0, 1.0, 4.0, 0.0),  # a half; a quarter by gradient
    row("b", 0, "latent", -1.0, -1.0, 1.0, -1.0),  # nothing
    row("c", 0, "latent", 3.0, 2.0, 1.0, 2.0),  # minus one; and 0: the gap is negative
    row("a", 1, "latent", 4.0, 4.0, 4.0, 0.0),
    row("b", 1, "latent", math.nan, 1.0, 1.0, -1.0),  # no answer under the patch
    row("a", 1, "image", 0.0, 0.0, 4.0, 0.0),
]


def test_fractions_means_and_counts_by_hand():
    found = by_hand(ROWS)
    nan = math.nan
    assert torch.allclose(found.tensor, torch.tensor([[-1 / 6, nan], [1.0, 0.0]]).double(), equal_nan=True)
    assert torch.allclose(found.attribution, torch.tensor([[1 / 12, nan], [1.0, 0.0]]).double(), equal_nan=True)
    frame = found.frame(n_resamples=200)
    assert [*zip(frame.layer, frame.pos, frame.n, frame.n_lost, strict=True)] == [
        (0, "latent", 3, 0), (1, "latent", 1, 1), (1, "image", 1, 0),
    ]  # fmt: skip
    interval = cluster_mean_interval([0.5, 0.0, -1.0], ["a", "b", "c"], n_resamples=200, seed=3)
    assert (frame.low[0], frame.high[0]) == (interval.low, interval.high)
    assert math.isnan(frame.low[1]), "one group has no interval"
    assert found.n_pairs == 3 and found.n_excluded == 2 and frame.attrs["excluded"] == {"no answer": 2}
    error = found.attribution_error()
    assert (error.max_abs, error.n_cells) == (0.25, 3) and error.mean_abs == pytest.approx(0.25 / 3)
    assert error.rank_correlation == pytest.approx(0.5), "ranks 1 3 2 and 2 3 1"


def test_a_saved_sweep_is_the_same(tmp_path):
    found = by_hand(ROWS)
    again = PatchingSweep.load(found.save(tmp_path / "sweep"))
    pd.testing.assert_frame_equal(again.frame(n_resamples=100), found.frame(n_resamples=100))
    assert torch.equal(again.tensor.nan_to_num(9), found.tensor.nan_to_num(9)) and again.excluded == found.excluded
    Results(found.results.rows, {}).save(tmp_path / "other")
    with pytest.raises(ResultsError, match="holds other results"):
        PatchingSweep.load(tmp_path / "other")


def test_what_was_not_run_is_not_shown():
    manifest = {**MANIFEST, "method": "exact"}
    with pytest.raises(SettingError, match="method='exact'"):
        _ = PatchingSweep(Results(by_hand(ROWS).results.rows, manifest)).attribution


def test_near_zero_pairs_are_left_out_and_counted():
    model = twins(seed=4).traced

    def metric(logits, clean, corrupted):
        return logits[:, 7] * torch.tensor([float(one.id != PAIRS[1].clean.id) for one in clean])

    found = patching_sweep(
        model, PAIRS.clean, PAIRS.corrupted, "resid_pre", metric=metric, positions=latent, min_gap=1e-6
    )
    assert found.excluded == {"clean and corrupted too close": [PAIRS[1].clean.id]}
    assert found.n_pairs == 2 and set(found.frame(n_resamples=10).n) == {2}


def test_every_sweep_has_a_function_of_its_name():
    for name in SWEEPS:
        function = getattr(pl, f"get_act_patch_{name}")
        assert function.__name__ == f"get_act_patch_{name}" and f"get_act_patch_{name}" in pl.__all__
    assert set(SWEEPS) == {
        name.removeprefix("get_act_patch_") for name in pl.__all__ if name.startswith("get_act_patch_")
    }


def test_axes_of_sweeps_over_heads():
    assert SWEEPS["attn_head_out_by_pos"].axes == ("layer", "pos", "head")
    assert SWEEPS["attn_head_pattern_all_pos"].axes == ("layer", "head")
    assert SWEEPS["attn_head_by_pos_every"].axes == ("site", "layer", "pos", "head")


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"clean_items": PAIRS.clean[:2]}, ItemError, "2 clean and 3 corrupted items"),
        ({"corrupted_items": PAIRS.corrupted[::-1]}, ItemError, "the prompts of 2 of 3 pairs differ"),
        ({"metric": "kl"}, SettingError, "metric 'kl'"),
        ({"metric": lambda a, b: a}, SettingError, "a metric of 2 arguments"),
        ({"metric": lambda logits: logits.mean()}, SettingError, "the metric gave shape () for 3 rows"),
        ({"mode": "frozen"}, SettingError, "mode = 'frozen'"),
        ({"direction": "both"}, SettingError, "direction = 'both'"),
        ({"method": "fast"}, SettingError, "method = 'fast'"),
        ({"name": "resid"}, SettingError, "no sweep is called 'resid'"),
        ({"min_gap": 0.0}, SettingError, "min_gap = 0.0"),
        ({"positions": []}, SettingError, "positions = []"),
        ({"positions": [image, image]}, SettingError, "positions = [image, image]"),
        ({"positions": latent[7]}, RoleError, "latent has 3 here"),
        ({"name": "latent", "positions": question}, RoleError, "'hook_latent' at question"),
        ({"name": "attn_head_out_all_pos", "positions": [image]}, SettingError, "several positions for attn_head_out_all_pos"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(keywords: dict, error: type[PrismlensError], says: str, unchecked):
    asked = {"clean_items": PAIRS.clean, "corrupted_items": PAIRS.corrupted, "name": "resid_pre", **keywords}
    with pytest.raises(error, match=re.escape(says)):
        patching_sweep(twins(seed=4).traced, **asked)


def test_a_model_with_edits_is_refused():
    view = twins(seed=4).traced.edited(Edit(Zero()))
    with pytest.raises(EditError, match="a model with 1 edits"):
        patching_sweep(view, PAIRS.clean, PAIRS.corrupted, "resid_pre")


def test_an_unknown_keyword_is_not_swallowed():
    with pytest.raises(TypeError, match="postions"):
        pl.get_act_patch_resid_post(twins(seed=4).traced, PAIRS.clean, PAIRS.corrupted, postions=latent)
