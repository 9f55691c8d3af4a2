"""Every hook name, read and changed in the prompt and at latent steps, bit for bit against plain PyTorch hooks."""

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.models.hooked_attention import attention_hooked
from prismlens.models.loop import unroll
from prismlens.models.lvr import StepOutput
from prismlens.sites import LATENT, site, site_names
from prismlens.trace.forward import Read, Write, traced_step
from prismlens.unrolled import Segment, Unrolled
from tests.plain_hooks import SHAPES, Twins, every_name, plain_run, reading, relative, same, shaped_twins

ITEMS = shapes(5, seed=8)
EAGER_NAMES = ("rot_q", "rot_k", "attn_scores", "pattern")


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda n: "-".join(map(str, SHAPES[n].values())))
def pair(request) -> Twins:
    return shaped_twins(request.param)


@pytest.fixture(params=[1, 5], ids=["alone", "padded batch"])
def items(request):
    return ITEMS[: request.param]


def names_of(pair: Twins) -> list[str]:
    return every_name(pair.plain.n_layers, head=pair.plain.has_head)


def other(value: Tensor) -> Tensor:
    return value * 1.5 + 0.25


def agree(name: str, a: Tensor, b: Tensor) -> bool:
    """Bit for bit; but what each head adds has no tensor in the model, and any way to sum it rounds otherwise."""
    return relative(a, b) < 1e-5 if name.endswith("hook_result") else torch.equal(a, b)


def traced_run(pair: Twins, items, name: str = "", forwards=(), names=()) -> tuple[Unrolled, list[StepOutput], list]:
    """A free run of which every forward is traced: what came out, and what was read in each."""
    outputs, values = [], []
    count = pair.traced.hf.n_layers

    def forward(unrolled: Unrolled, n_queries: int, **inputs):
        everything = torch.ones(len(items), n_queries, dtype=torch.bool)
        fed = inputs.get("latents") is not None
        reads = [Read(site(one, count), everything) for one in names if fed or one != LATENT]
        writes = []
        if name and len(outputs) in forwards and (fed or name != LATENT):
            writes = [Write(site(name, count), everything, lambda value, _: other(value))]
        got = traced_step(pair.traced.engine.wrapper, inputs, writes, reads)
        outputs.append(got.output)
        values.append(got.values)
        return got.output

    run = unroll(pair.traced.hf, pair.processor(items), pair.settings, forward=forward)
    return run, outputs, values


def test_the_table_has_the_names_of_the_test_in_the_order_of_a_forward(pair):
    names = names_of(pair)
    assert list(site_names(pair.plain.n_layers, head=pair.plain.has_head, every=True)) == names
    places = [site(name, pair.plain.n_layers) for name in names]
    assert places == sorted(places, key=lambda place: place.order)


@torch.no_grad()
def test_every_name_is_read_as_a_plain_hook_reads_it_in_every_forward(pair, items):
    names = names_of(pair)
    with attention_hooked(pair.plain.model.language_model), reading(pair.plain, names) as expected:
        plain, record = plain_run(pair, items, every_logit=True)
    run, _, values = traced_run(pair, items, names=names)
    assert torch.equal(run.latents, plain.latents) and torch.equal(run.input_ids, plain.input_ids)
    assert len(values) == len(record.fed) == 3 and bool((run.segments == Segment.LATENT).any())
    for name in names:
        seen = [one[name] for one in values if name in one]
        assert len(seen) == len(expected[name]) == (1 if name == LATENT else 3), name
        for got, wanted in zip(seen, expected[name], strict=True):
            assert agree(name, got, wanted.flatten(0, 1)), name


@torch.no_grad()
def test_every_name_is_changed_as_a_plain_hook_changes_it_in_the_prompt_and_at_a_latent_step(pair, items):
    bare = {}
    for eager in (False, True):
        with attention_hooked(pair.plain.model.language_model, eager):
            bare[eager] = plain_run(pair, items)[1].logits
    for name in names_of(pair):
        eager = name.endswith(EAGER_NAMES)
        forwards = (1,) if name == LATENT else (0, 1)
        with attention_hooked(pair.plain.model.language_model, eager):
            changes = {number: [(name, other)] for number in forwards}
            plain, record = plain_run(pair, items, changes, every_logit=name == "unembed.hook_out")
        with attention_hooked(pair.traced.hf.model.language_model, eager):
            run, outputs, _ = traced_run(pair, items, name, forwards)
        assert agree(name, run.latents, plain.latents), name
        assert torch.equal(run.input_ids, plain.input_ids), name
        if name == "unembed.hook_out":  # the record is made before the change
            record.logits[:2] = [other(value) for value in record.logits[:2]]
        logits = [output.logits[:, -1] for output in outputs]
        assert all(agree(name, a, b) for a, b in zip(logits, record.logits, strict=True)), name
        assert not torch.equal(logits[1], bare[eager][1]), f"{name}: the logits of the latent's own forward"
    assert same(plain_run(pair, items)[1].logits, bare[False]), "the twin was left changed"
