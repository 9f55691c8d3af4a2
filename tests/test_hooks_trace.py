"""`model.trace`: hook names in a plain nnsight block, read and written; where a block can stand and where it cannot."""

# ruff: noqa: SIM117  (nnsight takes the block of the `with` that opens the trace, so that one stands alone)

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import EditError, SiteError
from prismlens.interventions import Cut, Edit, Zero
from prismlens.positions import answer, latent, question
from prismlens.trace import PrismModel
from tests.plain_hooks import LAYERS, STEPS, Twins, relative, twins

ITEMS = shapes(3, seed=3)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins()


@pytest.fixture
def model(pair: Twins) -> PrismModel:
    return pair.traced


@pytest.fixture(scope="module")
def run(pair: Twins):
    return pair.traced.generate(ITEMS)


def logits_of(model: PrismModel, run, name: str, change) -> Tensor:
    return model.run_with_hooks(ITEMS, [(name, lambda value, hook: change(value))], mode="held", run=run)


def generated(tracer, logits: Tensor) -> Tensor:
    return logits[:, tracer.run.n_prompt - 1 : -1]


def agree(a: Tensor, b: Tensor) -> bool:
    there = ~b.isnan()
    return relative(a[there], b[there]) < 1e-5


def test_names_read_what_a_cache_holds(model, run):
    with model.trace(ITEMS, run=run) as tracer:
        latents = model.hook_latent.save()
        query = model.blocks[0].attn.hook_q.save()
        pattern = model.blocks[1].attn.hook_pattern.save()
        result = model.blocks[1].attn.hook_result.save()
        middle = model.blocks[1].hook_resid_mid.save()
        scale = model.blocks[-1].ln2.hook_scale.save()
        out = model.blocks[-1].mlp.out.hook_out.save()
        logits = model.unembed.hook_out.save()
        whole = tracer.result.save()
    found = {
        "blocks.0.attn.hook_q": query, "blocks.1.attn.hook_pattern": pattern.transpose(1, 2),
        "blocks.1.attn.hook_result": result, "blocks.1.hook_resid_mid": middle, "blocks.2.ln2.hook_scale": scale,
        "blocks.2.hook_mlp_out": out, "unembed.hook_out": logits,
    }  # fmt: skip
    _, cache = model.run_with_cache(ITEMS, list(found), run=run)
    assert torch.equal(latents, run.latents) and torch.equal(whole.logits, logits)
    for name, value in found.items():
        assert relative(value[cache.positions.rows, cache.positions.columns], cache.flat(name)) < 1e-5, name
    assert model.hf.model.language_model.config._attn_implementation == "sdpa"


def test_assignments_and_changes_in_place_are_hooks(model, run):
    with model.trace(ITEMS, run=run) as tracer:
        model.blocks[0].attn.hook_z = model.blocks[0].attn.hook_z * 2
        assigned = tracer.result.save()
    assert agree(generated(tracer, assigned.logits), logits_of(model, run, "blocks.0.attn.hook_z", lambda v: v * 2))
    with model.trace(ITEMS, run=run) as tracer:
        model.blocks[1].hook_resid_pre[:, 5:] = 0
        model.blocks[1].ln2.hook_normalized *= 2
        changed = tracer.result.save()

    def blank(value: Tensor) -> None:
        value[:, 5:] = 0

    hooks = [
        ("blocks.1.hook_resid_pre", lambda value, hook: blank(value)),
        ("blocks.1.ln2.hook_normalized", lambda value, hook: value * 2),
    ]
    assert agree(generated(tracer, changed.logits), model.run_with_hooks(ITEMS, hooks, mode="held", run=run))


def test_a_latent_step_is_that_step_of_every_item(pair, model, run):
    with model.trace(ITEMS, run=run) as tracer:
        for step in range(STEPS):
            fed = model.at(latent[step]).hook_latent
            assert torch.equal(fed[:, 0], tracer.run.latents[:, step])
        model.at(latent[1]).blocks[1].attn.hook_k = model.at(latent[1]).blocks[1].attn.hook_k * 0
        second = model.at(latent[1] | latent[2]).blocks[2].hook_out.save()
        out = tracer.result.save()
    assert second.shape == (len(ITEMS), 2, 64)
    expected = model.run_with_hooks(
        ITEMS, [("blocks.1.attn.hook_k", lambda value, hook: value * 0)], mode="held", run=run, positions=latent[1]
    )
    assert agree(generated(tracer, out.logits), expected)
    with model.trace(ITEMS, run=run):
        ragged = model.at(question).blocks[0].hook_in.save()
    assert ragged.ndim == 2


def test_gradients_in_a_trace(model, run):
    with model.trace(ITEMS, run=run) as tracer:
        state = model.blocks[0].hook_resid_post.save()
        state.retain_grad()
        number = tracer.result.logits[:, -2, 20].sum().save()
    number.backward()
    model.hf.zero_grad()
    assert state.grad is not None and float(state.grad.abs().max()) > 0


def test_what_would_change_nothing_is_an_error(model, run):
    with pytest.raises(
        EditError, match=r"blocks.1.ln1.hook_normalized was changed in place[\s\S]*model.blocks\[1\].ln1"
    ):
        with model.trace(ITEMS, run=run):
            model.blocks[1].ln1.hook_normalized[:] = 0
    with pytest.raises(EditError, match="hook_resid_post was changed in place"):
        with model.trace(ITEMS, run=run):
            value = model.at(latent).blocks[1].hook_out
            value[:] = 0
    with pytest.raises(EditError, match=r"a change at blocks.1.hook_resid_post returned \(1,\)"):
        with model.trace(ITEMS, run=run):
            model.blocks[1].hook_out = torch.zeros(1)
    with pytest.raises(Exception, match=r"blocks|layers.0|order"):
        with model.trace(ITEMS, run=run):
            late = model.blocks[2].hook_out  # noqa: F841
            model.blocks[0].hook_resid_post = model.blocks[0].hook_resid_post * 0
    clean = model.run_with_cache(ITEMS, "resid_post", run=run)[1]
    assert clean is not None, "the model goes on"


def test_names_outside_a_trace_and_unknown_names_are_errors(model, run):
    with pytest.raises(EditError, match="outside a trace"):
        model.blocks[0].hook_resid_post  # noqa: B018
    with pytest.raises(EditError, match="outside a trace"):
        model.hook_latent = torch.zeros(1)
    with pytest.raises(SiteError, match=r"the model has no .blocks.1.hook_resid_pots."):
        with model.trace(ITEMS, run=run):
            value = model.blocks[1].hook_resid_pots
    with pytest.raises(SiteError, match=rf"blocks\[{LAYERS}\]"):
        with model.trace(ITEMS, run=run):
            value = model.blocks[LAYERS].hook_resid_pre
    with pytest.raises(SiteError, match=r"no .hook_latent_head."):
        with model.trace(ITEMS, run=run):
            value = model.hook_latent_head  # noqa: F841


def test_a_trace_of_an_edited_view_says_where_changes_belong_and_structure_still_holds(model, run):
    with pytest.raises(EditError, match="a trace while"):
        model.edited(Edit(op=Zero(), positions=latent)).trace(ITEMS)
    with pytest.raises(EditError, match="hooks are active"), model.hooks([("hook_embed", lambda value, hook: None)]):
        model.trace(ITEMS)
    view = model.edited(Edit(op=Cut(to=latent, by=answer), positions=latent))
    cut = view.generate(ITEMS)
    with view.trace(ITEMS, run=cut) as tracer:
        pattern = view.blocks[0].attn.hook_pattern.save()
    steps, after = tracer.run.steps[0] >= 0, answer.mask(tracer.run)[0]
    assert float(pattern[0][:, after][:, :, steps].abs().max()) == 0


SCRIPT = """
import torch
from tests.plain_hooks import twins
from prismlens.data.shapes import shapes
model = twins().traced
with model.trace(shapes(1, seed=3)) as tracer:
    model.blocks[1].hook_resid_post[:] = 0
    value = model.blocks[2].hook_resid_pre.save()
print("zeros:", bool((value == 0).all()))
"""


def test_a_block_stands_in_a_notebook_cell_and_in_python_c_and_not_in_piped_stdin():
    inline = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert "zeros: True" in inline.stdout, inline.stderr[-800:]
    shell = "from IPython.core.interactiveshell import InteractiveShell as S\n" + f"S.instance().run_cell({SCRIPT!r})"
    cell = subprocess.run([sys.executable, "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert "zeros: True" in cell.stdout, (cell.stdout + cell.stderr)[-800:]
    piped = subprocess.run([sys.executable], input=SCRIPT, cwd=ROOT, capture_output=True, text=True)
    assert piped.returncode and "stdin" in piped.stderr and "zeros" not in piped.stdout
