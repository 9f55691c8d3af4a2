"""At every name and layer: a free run's values against a replay's, and a padded batch's against each item alone."""

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.sites import axes
from prismlens.trace import Run
from prismlens.unrolled import Segment
from tests.plain_hooks import Twins, every_name, relative, shaped_twins

ITEMS = shapes(5, seed=8)
CLOSE = 2e-5


@pytest.fixture(scope="module", params=[0, 1, 4])
def pair(request) -> Twins:
    return shaped_twins(request.param, steps=2, tokens=2)


def collected(pair: Twins, items, mode: str, run: Run | None = None) -> dict[str, list[tuple[slice, Tensor]]]:
    """Every value of the language model in every forward, with its columns; positions on the second axis."""
    kept: dict[str, list[tuple[slice, Tensor]]] = {}

    def keep(value: Tensor, *, hook) -> None:
        value = value.transpose(1, 2) if "key" in axes(hook.name) else value
        kept.setdefault(hook.name, []).append((hook.columns, value))

    pair.traced.run_with_hooks(items, [(lambda name: axes(name)[0] == "batch", keep)], mode=mode, run=run)
    assert set(kept) == set(every_name(pair.plain.n_layers, head=pair.plain.has_head))
    return kept


def test_a_free_run_and_its_replay_agree_at_every_name(pair):
    run = pair.traced.generate(ITEMS)
    free, held = collected(pair, ITEMS, "free"), collected(pair, ITEMS, "held", run)
    valid = run.unrolled.valid
    for name, forwards in free.items():
        ((_, whole),) = held[name]
        if name == "hook_latent":
            assert relative(torch.cat([value for _, value in forwards], 1), whole) < CLOSE
            continue
        assert [columns.start for columns, _ in forwards] == [0, *range(run.unrolled.n_prompt, forwards[-1][0].stop)]
        for columns, value in forwards:
            again, there = whole[:, columns], valid[:, columns]
            if "key" in axes(name):
                keys = valid[:, None, None, : value.shape[-1]].expand_as(value)
                seen = there[:, :, None, None] & keys & (value > -1e30)
                assert bool((again[..., value.shape[-1] :][there] <= 0).all()), f"{name}: keys that come later"
                assert relative(again[..., : value.shape[-1]][seen], value[seen]) < CLOSE, name
            else:
                assert relative(again[there], value[there]) < CLOSE, name


def test_a_padded_batch_is_each_item_alone_at_every_name(pair):
    run = pair.traced.generate(ITEMS)
    together = collected(pair, ITEMS, "held", run)
    assert bool((run.unrolled.segments[:, 0] == Segment.PAD).any()), "the batch has to need padding"
    for row, item in enumerate(ITEMS):
        one = pair.traced.generate([item])
        alone = collected(pair, [item], "held", one)
        mine, own = run.unrolled.valid[row], one.unrolled.valid[0]
        for name, ((_, value),) in alone.items():
            batch = together[name][0][1][row]
            if name == "hook_latent":
                assert relative(batch, value[0]) < CLOSE, name
            elif "key" in axes(name):
                a, b = batch[mine][..., mine], value[0][own][..., own]
                assert torch.equal(a < -1e30, b < -1e30), name
                assert relative(a[b > -1e30], b[b > -1e30]) < CLOSE, name
            else:
                assert relative(batch[mine], value[0][own]) < CLOSE, name
