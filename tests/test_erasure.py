"""Erasing what a probe reads: what known mechanisms imply, and that each fold's erasers know nothing of its items."""

import importlib

import numpy as np
import pytest
import torch

import prismlens as pl
from prismlens.data.shapes import shapes
from prismlens.decodability import ErasureTest, erasure_test
from prismlens.errors import RoleError, SettingError
from prismlens.interventions import Context
from prismlens.interventions.erase import Erase
from prismlens.positions import image, latent, question
from prismlens.probes import ErasureFitter
from tests.plain_hooks import Twins, plain_run, twins

erasure = importlib.import_module("prismlens.decodability.erasure")  # the package attribute is the function
ITEMS = pl.load_items("shapes", n=120, seed=5)


def shipped(name: str) -> ErasureTest:
    return erasure_test(pl.load(name), ITEMS, folds=3, on_rare="drop")


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


def test_the_operation_is_the_erasers_own_map():
    x, codes = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    eraser = ErasureFitter(8, 3).update_labels(x + codes[:, None], codes).eraser()
    erase = Erase(eraser.mean, eraser.removed, eraser.read)
    context = Context(item_ids=("a",) * 60, steps=torch.zeros(60, dtype=torch.long), seed=0, site="hook_latent")
    assert erase(x, context).dtype == torch.float32
    assert erase(x, context) == pytest.approx(eraser(x))


def test_the_bottleneck_loses_its_answers_with_the_concept_and_not_with_random_dimensions():
    found = shipped("tiny/bottleneck")
    frame = found.frame()
    clean, erased, control = (frame.loc[name] for name in ("clean", "erased", "control"))
    assert clean.read_low > 2 * found.majority and erased.read_high < clean.read_low
    assert erased.change_high < -0.2 and erased.over_control_high < 0 and erased.p_over_control < 0.01
    assert control.read > erased.read and found.rank["erased"] == found.rank["control"]
    assert clean.change == 0 == control.over_control


def test_the_bypass_holds_no_answer_that_could_be_lost():
    found = shipped("tiny/bypass")
    wide = found.rows.pivot(index="item", columns="condition", values="choice")
    assert (wide.erased == wide.clean).all() and (wide.control == wide.clean).all()


def test_erasers_act_at_their_own_latent_and_come_from_the_other_folds(pair: Twins, monkeypatch: pytest.MonkeyPatch):
    """The runs of one fold against plain hooks on an untraced twin, with erasers fitted here."""
    scenes = shapes(24, seed=3)
    codes = np.unique([item.answer for item in scenes], return_inverse=True)[1]
    seen: list = []
    plain = erasure._rows
    monkeypatch.setattr(erasure, "_rows", lambda items, name, run: seen.append((name, run)) or plain(items, name, run))
    erasure_test(pair.traced, scenes, target="answer", positions=[latent[1]], folds=3)
    states = plain_run(pair, scenes)[0].latents[:, 1]
    runs = [run for name, run in seen if name == "erased"]
    assert sorted(item.id for run in runs for item in run.items) == sorted(item.id for item in scenes)
    for run in runs:
        held = {item.id for item in run.items}
        rest = torch.tensor([item.id not in held for item in scenes])
        assert not {item.group for item in run.items} & {
            s.group for s, other in zip(scenes, rest, strict=True) if other
        }
        eraser = ErasureFitter(64, 4).update_labels(states[rest], torch.from_numpy(codes)[rest]).eraser()
        own = [item for item in scenes if item.id in held]
        expected, _ = plain_run(pair, own, changes={2: [("hook_latent", eraser)]})
        assert run.latents[:, :2] == pytest.approx(expected.latents[:, :2], abs=1e-4)
        assert run.latents[:, 2] == pytest.approx(expected.latents[:, 2], abs=1e-3)
        assert not torch.allclose(run.latents[:, 2], plain_run(pair, own)[0].latents[:, 2], atol=1e-3)


def test_what_cannot_be_erased_is_refused(pair: Twins):
    scenes = shapes(24, seed=3)
    with pytest.raises(RoleError, match=r"image names \d+ positions in 24 items"):
        erasure_test(pair.traced, scenes, target="answer", positions=[image], site="blocks.0.hook_resid_post")
    with pytest.raises(RoleError, match="no position to erase at"):
        erasure_test(pair.traced, scenes, target="answer", positions=[])
    with pytest.raises(SettingError, match="have no 'colour'"):
        erasure_test(pair.traced, scenes, target="colour", positions=[question[-1]])
