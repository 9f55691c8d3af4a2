"""Held sweeps against whole forwards of an untraced twin under plain PyTorch hooks, one cell at a time."""

import re
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor

from prismlens.data.pairs import load_pairs
from prismlens.errors import PrismlensError
from prismlens.models.visibility import Rule
from prismlens.patching import held as held_module
from prismlens.patching import patching_sweep
from prismlens.positions import Role, answer, image, latent, lead, question
from tests.plain_hooks import LAYERS, Twins, hooked, plain_run, reading, twins, whole

PAIRS = load_pairs("shapes", 3, seed=6)
"""One of each attribute: prompts of different lengths, and images of three sizes."""
ROLES: list[Role] = [latent[0], question[-1], image.box, lead | latent, answer[0]]
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
TINY = 1e-9


def two_ids(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins(seed=4)


class Plain:
    """Both sides of the pairs on the untraced twin, and whole forwards with one cell of one side replaced."""

    def __init__(self, pair: Twins, receiver, donor, *, rules=()):
        self.pair = pair
        self.receiver, self.donor = plain_run(pair, list(receiver))[0], plain_run(pair, list(donor))[0]
        self.source = [self._source(row) for row in range(len(receiver))]

    def _source(self, row: int) -> int:
        """The column before the first token that differs, or before the answer's first."""
        a, b = self.receiver.input_ids[row].tolist(), self.donor.input_ids[row].tolist()
        first = [c for c, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        starts = [int(run.answer_first[row]) for run in self.runs(self.pair)]
        return min([*first, *(s for s in starts if s >= 0)]) - 1

    def runs(self, pair: Twins):
        return (pair.traced.generate(list(run.items)).unrolled for run in (self.receiver, self.donor))

    @torch.no_grad()
    def metric(self, name: str | None = None, mask: Tensor | None = None, metric=two_ids) -> Tensor:
        with ExitStack() as stack:
            if name is not None:
                with reading(self.pair.plain, [name]) as kept:
                    self.pair.plain.step(**whole(self.pair, self.donor))
                given = kept[name][0]

                def change(value: Tensor) -> Tensor:
                    assert mask is not None
                    out = value.clone()
                    for row, column in mask.nonzero().tolist():
                        at = int(self.receiver.steps[row, column]) if name == "hook_latent" else column
                        out[row, at] = given[row, at]
                    return out

                stack.enter_context(hooked(self.pair.plain, name, change))
            hidden = self.pair.plain.step(**whole(self.pair, self.receiver)).hidden
        at = torch.stack([hidden[row, column] for row, column in enumerate(self.source)])
        return metric(self.pair.plain.lm_head(at))


def sides(direction: str):
    return (PAIRS.corrupted, PAIRS.clean) if direction == "denoising" else (PAIRS.clean, PAIRS.corrupted)


def sweep(pair: Twins, name: str, **keywords):
    keywords = {"metric": two_ids, "min_gap": TINY, "positions": ROLES, **keywords}
    return patching_sweep(pair.traced, PAIRS.clean, PAIRS.corrupted, name, **keywords)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", SITES)
def test_every_cell_is_what_plain_hooks_give_in_a_whole_forward(pair, name: str, direction: str):
    plain = Plain(pair, *sides(direction))
    found = sweep(pair, name, direction=direction)
    assert found.tensor.shape == (LAYERS, len(ROLES)) and found.axes == ("layer", "pos")
    rows = found.rows.set_index(["layer", "pos", "pair"])
    own, other = plain.metric(), Plain(pair, *sides(direction)[::-1]).metric()
    changed = 0
    for layer in range(LAYERS):
        for role in ROLES:
            mask = role.mask(plain.receiver) | role.mask(plain.donor)
            for row, column in enumerate(plain.source):
                mask[row, column + 1 :] = False
            wanted = plain.metric(f"blocks.{layer}.hook_{name}", mask)
            changed += int((wanted != own).sum())
            for row, one in enumerate(PAIRS):
                cell = rows.loc[(layer, str(role), one.clean.id)]
                ends = (own[row], other[row]) if direction == "noising" else (other[row], own[row])
                assert (cell.clean, cell.corrupted) == pytest.approx([float(end) for end in ends], abs=2e-5)
                assert cell.patched == pytest.approx(float(wanted[row]), abs=2e-5)
    assert changed > LAYERS * len(ROLES), "the patches do something here"


def test_the_vector_that_is_fed_is_what_enters_the_first_layer(pair):
    plain = Plain(pair, *sides("denoising"))
    found = sweep(pair, "latent", positions=[latent[0], latent[1:], latent])
    assert found.axes == ("pos",) and found.labels == {"pos": ("latent[0]", "latent[1:]", "latent")}
    rows = found.rows.set_index(["pos", "pair"])
    for role in (latent[0], latent[1:], latent):
        wanted = plain.metric("hook_latent", role.mask(plain.receiver))
        got = [rows.loc[(str(role), one.clean.id)].patched for one in PAIRS]
        assert got == pytest.approx(wanted.tolist(), abs=2e-5)


def test_without_positions_every_position_up_to_the_decision_is_a_place(pair):
    plain = Plain(pair, *sides("denoising"))
    found = sweep(pair, "resid_post", positions=None)
    lengths = [int(plain.receiver.valid[row, : c + 1].sum()) for row, c in enumerate(plain.source)]
    counts = found.rows[found.rows.layer == 1].groupby("pair").size()
    assert [counts[one.clean.id] for one in PAIRS] == lengths
    frame = found.frame(n_resamples=50)
    assert len(frame) == found.tensor.numel() and int(frame.n.sum()) == LAYERS * sum(lengths)
    # One position of one image, and one word, by hand.
    rows = found.rows.set_index(["layer", "pos", "pair"])
    for label, where in {
        "image[row 3, column 4]": lambda run: (run.patches[..., 0] == 3) & (run.patches[..., 1] == 4),
        "question[2]": question[2].mask,
        "latent[1]": latent[1].mask,
    }.items():
        wanted = plain.metric("blocks.1.hook_resid_post", where(plain.receiver))
        got = [rows.loc[(1, label, one.clean.id)].patched for one in PAIRS]
        assert got == pytest.approx(wanted.tolist(), abs=2e-5)
    labels = [label for label in found.labels["pos"] if label.startswith("image")]
    places = [tuple(map(int, re.findall("[0-9]+", label))) for label in labels]
    grids = {tuple(grid) for grid in plain.receiver.grids.tolist()}
    assert len(grids) > 1, "images of different sizes"
    assert places == sorted({(r, c) for height, width in grids for r in range(height) for c in range(width)})
    assert found.labels["pos"][0] == "template[0]" and found.labels["pos"][-1].startswith("answer")


def test_patching_everything_gives_the_donor(pair):
    found = sweep(pair, "resid_post", positions=[~answer | answer])
    assert torch.allclose(found.tensor, torch.ones_like(found.tensor), atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_numbers_do_not_depend_on_the_batch(pair, batch_size: int):
    wanted = sweep(pair, "resid_pre", positions=[latent, question, image.box])
    pair.traced.batch_size = batch_size
    try:
        found = sweep(pair, "resid_pre", positions=[latent, question, image.box])
    finally:
        pair.traced.batch_size = 50
    assert found.excluded == wanted.excluded
    a, b = (one.rows.sort_values(["pos", "layer", "pair"], ignore_index=True) for one in (found, wanted))
    assert list(a.pair) == list(b.pair)
    assert np.allclose(a.patched, b.patched, atol=2e-5)


@pytest.mark.parametrize("columns", [1, 7, 1000])
def test_numbers_do_not_depend_on_where_forwards_start(pair, columns: int, monkeypatch):
    wanted = sweep(pair, "attn_out").rows
    monkeypatch.setattr(held_module, "COLUMNS", columns)
    found = sweep(pair, "attn_out").rows
    order = ["layer", "pos", "pair"]
    assert np.allclose(found.sort_values(order).patched, wanted.sort_values(order).patched, atol=2e-5)


def test_a_hidden_latent_restores_exactly_nothing():
    hidden = twins(seed=4, visibility=[{"query": "answer", "key": "latent"}])
    for name, direction in (("resid_pre", "denoising"), ("mlp_out", "noising"), ("latent", "denoising")):
        found = sweep(hidden, name, positions=[latent, latent[1]], direction=direction)
        own = found.rows.corrupted if direction == "denoising" else found.rows.clean
        assert (found.rows.patched == own).all(), "not one bit"
    seen = sweep(twins(seed=4), "resid_pre", positions=[latent])
    assert (seen.rows.patched[seen.rows.layer < LAYERS - 1] != seen.rows.corrupted[seen.rows.layer < LAYERS - 1]).all()


def test_every_site_of_a_block_at_once(pair):
    every = sweep(pair, "block_every", positions=[latent, image])
    assert every.axes == ("site", "layer", "pos")
    assert every.labels["site"] == ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
    for number, name in enumerate(("resid_pre", "attn_out", "mlp_out")):
        alone = sweep(pair, name, positions=[latent, image])
        assert torch.allclose(every.tensor[number], alone.tensor, atol=1e-3)


def test_a_metric_that_mixes_rows_is_found_out(pair):
    with pytest.raises(PrismlensError, match="in a batched forward and"):
        sweep(pair, "resid_pre", metric=lambda logits: logits[:, 7] - logits[:, 7].mean(0) + len(logits))


def test_rules_of_the_checkpoint_hold_in_resumed_forwards():
    """The masks of forwards that start in the middle are those of the whole sequence."""
    rule = Rule(answer, image)
    cut = twins(seed=4, visibility=[{"query": str(rule.query), "key": str(rule.key)}])
    plain = Plain(cut, *sides("denoising"))
    found = sweep(cut, "resid_mid", positions=[image, question])
    rows = found.rows.set_index(["layer", "pos", "pair"])
    for role in (image, question):
        wanted = plain.metric("blocks.1.hook_resid_mid", role.mask(plain.receiver))
        got = [rows.loc[(1, str(role), one.clean.id)].patched for one in PAIRS]
        assert got == pytest.approx(wanted.tolist(), abs=2e-5)
