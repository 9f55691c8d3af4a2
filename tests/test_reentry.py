"""A model that enters latent mode again, under rules on the answer: its run and the replay of it see the same."""

import pytest
import torch

import prismlens as pl
from prismlens.cache import ActivationCache, open_cache
from prismlens.data.shapes import shapes
from prismlens.experiment.run_file import decode, encode
from prismlens.models.visibility import Rule, masks
from prismlens.positions import answer, image
from prismlens.trace.run import Run, merge_runs
from prismlens.unrolled import Segment, take

ITEMS = shapes(3, seed=3)


@pytest.fixture(scope="module")
def model() -> pl.PrismModel:
    """The answer must not see the image: what text is the answer decides what it saw."""
    model = pl.load("tiny/bottleneck", check=False, batch_size=2)
    model.max_new_tokens = 7
    return model


@pytest.fixture(scope="module")
def both(model) -> tuple[torch.Tensor, Run]:
    """Logits and run; the first and the last item are made to write the start marker after two words."""
    start = model.hf.config.lvr_start_id

    def again(value: torch.Tensor, *, hook) -> None:
        after = (hook.unrolled.segments == Segment.ANSWER).sum(1) == 4
        once = (hook.unrolled.steps.amax(1) < 4) & torch.tensor(
            [item.id != ITEMS[1].id for item in hook.unrolled.items]
        )
        value[after & once, -1, start] = 99.0

    return model.run_with_hooks(ITEMS, [("unembed.hook_out", again)], return_type="both")


def test_some_items_entered_again_and_the_text_before_is_no_answer_any_more(both):
    run = both[1].unrolled
    assert both[1].steps_taken.tolist() == [8, 4, 8]
    assert run.as_written is not None
    changed = (run.as_written != run.segments).sum(1).tolist()
    assert changed == [5, 0, 5], "two closing markers, two words, the start marker"


def test_a_replay_is_the_run(model, both):
    logits, run = both
    model.run_with_cache(ITEMS, "resid_post", run=run)  # raises where the states differ
    again = model.run_with_hooks(ITEMS, [("hook_embed", lambda value, hook: None)], mode="held", run=run)
    there = ~logits.isnan() & (logits < 90)
    assert torch.allclose(logits[there], again[there], atol=1e-4)


def test_the_mask_of_a_replay_is_what_each_forward_had(both):
    run = both[1].unrolled
    rule = Rule(answer, image)
    (whole,) = masks(run, (rule,), n_layers=1, n_queries=run.shape[1])
    text = run.as_written == Segment.ANSWER
    seen = (whole[:, 0] & (run.segments == Segment.IMAGE)[:, None]).any(2)
    assert not bool(seen[text].any()), "what was written as an answer was blind"
    assert bool(seen[run.steps >= 0].all())


def test_what_was_written_goes_with_the_run_wherever_it_goes(model, both, tmp_path):
    run = both[1]
    read, _ = decode(encode(run, {}), ITEMS, torch.device("cpu"))
    cache: ActivationCache = model.run_with_cache(ITEMS, "resid_post", run=run)[1]
    cache.save(tmp_path / "cache")
    merged = merge_runs([run.take(ITEMS[1:2]), run.take([ITEMS[2], ITEMS[0]])]).take(ITEMS)
    for other in (read.unrolled, open_cache(tmp_path / "cache").unrolled, merged.unrolled):
        assert other.as_written is not None and torch.equal(other.as_written, run.unrolled.as_written)
    plain = model.generate(ITEMS[:1]).unrolled
    assert plain.as_written is None and take(plain, [0]).as_written is None
