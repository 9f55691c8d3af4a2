"""`remote="local"`: a block that goes through bytes does the same, and what cannot be sent is an error."""

# ruff: noqa: SIM117  (nnsight takes the block of the `with` that opens the trace, so that one stands alone)

import threading

import pytest
import torch

from prismlens.data.shapes import shapes
from prismlens.errors import SettingError
from prismlens.positions import latent
from tests.plain_hooks import twins

ITEMS = shapes(2, seed=3)
ROLE = latent[1]


@pytest.fixture(scope="module")
def model():
    return twins().traced


def test_a_block_through_bytes_reads_and_writes_the_same(model):
    run = model.generate(ITEMS)
    with model.trace(ITEMS, run=run) as tracer:
        pattern = model.blocks[0].attn.hook_pattern.save()
        model.at(ROLE).blocks[1].hook_resid_pre = model.at(ROLE).blocks[1].hook_resid_pre * 0
        here = tracer.result.logits.save()
    with model.trace(ITEMS, run=run, remote="local") as tracer:
        sent = model.blocks[0].attn.hook_pattern.save()
        model.at(ROLE).blocks[1].hook_resid_pre = model.at(ROLE).blocks[1].hook_resid_pre * 0
        there = tracer.result.logits.save()
    assert torch.equal(pattern, sent) and torch.equal(here, there)
    plain = model.run_with_cache(ITEMS, "resid_post", run=run)[1]
    with model.trace(ITEMS, run=run) as tracer:
        after = model.blocks[0].hook_out.save()
    rows, columns = plain.positions.rows, plain.positions.columns
    assert torch.allclose(after[rows, columns], plain.flat("blocks.0.hook_resid_post"), atol=1e-5)


def test_the_weights_are_not_sent(model, capsys):
    tracer = model.trace(ITEMS, remote="local")
    tracer.backend.verbose = True
    with tracer:
        value = model.blocks[0].hook_out.save()  # noqa: F841
    sent = int(capsys.readouterr().out.split("payload: ")[1].split(" bytes")[0].replace(",", ""))
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    assert 1000 < sent < weights / 2


def test_what_is_of_this_machine_alone_is_an_error(model):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        with model.trace(ITEMS, remote="local"):
            lock.acquire(blocking=False)
            value = model.blocks[0].hook_out.save()  # noqa: F841


def test_servers_and_free_traces_are_refused_with_the_reason(model, unchecked):
    for remote in (True, "https://api.example.org"):
        with pytest.raises(SettingError, match=r"needed: 'local'[\s\S]*remote.md"):
            model.trace(ITEMS, remote=remote)
    with pytest.raises(SettingError, match=r"mode = 'free'[\s\S]*not sent"):
        model.trace(ITEMS, mode="free", remote="local")
