"""Sweeps on the shipped models of known mechanism: each shows where its answer comes from."""

from functools import cache

import pytest
import torch

import prismlens as pl
from prismlens.data.pairs import load_pairs
from prismlens.patching import PatchingSweep, patching_sweep
from prismlens.positions import Role, image, latent

PAIRS = load_pairs("shapes", 12, seed=1)


@cache
def sweep(model: str, name: str, mode: str = "held", positions: Role | None = None, **keywords) -> PatchingSweep:
    return patching_sweep(
        pl.load(model), PAIRS.clean, PAIRS.corrupted, name, mode=mode, positions=positions, **keywords
    )


def test_the_vector_alone_restores_the_answer_of_the_bottleneck():
    fed = sweep("tiny/bottleneck", "latent", positions=latent).tensor
    assert fed.item() > 0.95
    resid = sweep("tiny/bottleneck", "resid_pre", positions=latent).tensor[:, 0]
    assert resid[0].item() == pytest.approx(fed.item(), abs=1e-4)
    assert (resid[1:] == 0).all(), "higher up nothing looks at the latents"
    held, free = (
        sweep("tiny/bottleneck", "resid_pre", mode=mode, positions=image).tensor[0, 0] for mode in ("held", "free")
    )
    assert held == 0 and free > 0.8, "the image acts through the latents only"


@pytest.mark.parametrize("mode", ["held", "free"])
def test_nothing_at_the_latents_of_the_bypass_restores_anything(mode: str):
    for name in ("latent", "resid_post"):
        found = sweep("tiny/bypass", name, mode=mode, positions=latent)
        assert (found.tensor == 0).all(), "exactly"
        assert (found.rows.patched == found.rows.corrupted).all()


def test_the_slot_carries_the_answer_where_the_vector_does_not():
    assert sweep("tiny/slot", "latent", positions=latent).tensor.abs().item() < 0.15
    resid = sweep("tiny/slot", "resid_pre", positions=latent).tensor[:, 0]
    assert resid[0].abs() < 0.15 and resid[-1] > 0.9


def test_noising_the_vector_destroys_what_denoising_restores():
    found = sweep("tiny/bottleneck", "latent", positions=latent, direction="noising")
    assert found.tensor.item() < 0.05
    assert (sweep("tiny/bypass", "latent", positions=latent, direction="noising").tensor == 1).all()


def test_pairs_are_decided_at_the_first_word_that_differs():
    model = pl.load("tiny/lvr")
    found = sweep("tiny/lvr", "latent")
    clean, corrupted = (model.generate(side) for side in (PAIRS.clean, PAIRS.corrupted))
    assert set(found.rows["at"]) == {"text"}
    assert found.labels["pos"] == ("latent[0]", "latent[1]", "latent[2]", "latent[3]")
    measured = found.rows.drop_duplicates("pair").set_index("pair")
    for row, one in enumerate(PAIRS):
        if one.clean.id not in measured.index:
            continue
        a, b = clean.unrolled.input_ids[row], corrupted.unrolled.input_ids[row]
        column = int((a != b).nonzero()[0])
        logits = model.run_with_cache(PAIRS.clean[row : row + 1], ["resid_pre"], positions=pl.answer[1])[0][0, 0]
        assert model.processor.decode([int(a[column])]).strip() in one.clean.options
        assert measured.loc[one.clean.id].clean == pytest.approx(float(logits[a[column]] - logits[b[column]]), abs=1e-3)


def test_free_runs_compare_the_letters():
    model = pl.load("tiny/lvr")
    found = sweep("tiny/lvr", "latent", mode="free").rows.drop_duplicates("pair").set_index("pair")
    run = model.generate(PAIRS.clean)
    for row, one in enumerate(PAIRS):
        if one.clean.id in found.index:
            a, b = (ord(str(item.answer)) - 65 for item in (one.clean, one.corrupted))
            wanted = run.option_logprobs[row, a] - run.option_logprobs[row, b]
            assert found.loc[one.clean.id].clean == pytest.approx(float(wanted), abs=1e-3)


def test_a_change_elsewhere_leaves_no_gap_to_recover():
    elsewhere = load_pairs("shapes", 6, seed=1, kind="elsewhere")
    with pytest.raises(pl.PrismlensError, match="no pair can be measured: 6 "):
        patching_sweep(pl.load("tiny/lvr"), elsewhere.clean, elsewhere.corrupted, "resid_pre", positions=latent)


def test_torch_is_left_as_it_was():
    model = pl.load("tiny/lvr")
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    first = model.generate(PAIRS.clean[:2])
    patching_sweep(model, PAIRS.clean, PAIRS.corrupted, "attn_out", positions=latent, method="both")
    assert all(torch.equal(before[name], value) for name, value in model.hf.state_dict().items())
    again = model.generate(PAIRS.clean[:2])
    assert torch.equal(first.option_logprobs, again.option_logprobs) and not model.hf._forward_hooks
