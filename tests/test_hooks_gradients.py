"""Gradients at sites: against PyTorch's own hooks, against finite differences, and under backward hooks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import EditError, SettingError, SiteError
from prismlens.models.hooked_attention import attention_hooked
from prismlens.positions import answer, latent
from prismlens.trace import PrismModel
from prismlens.unrolled import Unrolled
from tests.plain_hooks import Twins, every_name, formed, module_of, relative, shaped_twins, whole

ITEMS = shapes(3, seed=3)
DERIVED = ("hook_scale", "hook_normalized", "hook_result")
ROLE = answer[:1]


@pytest.fixture(scope="module", params=[0, 1])
def pair(request) -> Twins:
    return shaped_twins(request.param, steps=2, tokens=2)


@pytest.fixture
def model(pair: Twins) -> PrismModel:
    return pair.traced


def metric(logits: Tensor) -> Tensor:
    """One number an item, of the logits at the last selected position."""
    return logits[:, -1, 20] - logits[:, -1, 21] * 0.5


def plain_gradients(pair: Twins, run: Unrolled, names: list[str]) -> dict[str, Tensor]:
    """By PyTorch's tensor hooks on an untraced twin: gradients at modules' own tensors, positions second."""
    kept: dict[str, Tensor] = {}
    head = pair.plain.config.text.hidden_size // pair.plain.config.text.num_attention_heads
    handles = []
    for name in names:
        module, end, form = module_of(pair.plain, name)

        def keep(tensor: Tensor, name: str = name, form: str = form) -> Tensor:
            tensor = tensor if tensor.requires_grad else tensor.requires_grad_()
            tensor.register_hook(lambda grad: kept.__setitem__(name, formed(form, grad, head)))
            return tensor

        if end == "output":
            handles.append(module.register_forward_hook(lambda _, args, out, keep=keep: keep(out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _, args, keep=keep: (keep(args[0]), *args[1:])))
    with attention_hooked(pair.plain.model.language_model):
        output = pair.plain.step(**whole(pair, run))
    column = run.n_prompt + int(run.n_latents[0])
    number = output.logits[:, column, 20] - output.logits[:, column, 21] * 0.5
    number.sum().backward()
    pair.plain.zero_grad()
    for handle in handles:
        handle.remove()
    return kept


def test_gradients_at_every_module_are_those_of_plain_tensor_hooks(pair, model):
    run = model.generate(ITEMS)
    # One tensor that two branches read has one gradient; a branch's own reading of it needs a copy, see below.
    skipped = (*DERIVED, "attn_in", "mlp_in", "q.hook_in", "k.hook_in", "v.hook_in", "hook_latent_head")
    names = [name for name in every_name(pair.plain.n_layers) if not name.endswith(skipped)]
    _, cache = model.run_with_cache(ITEMS, names, run=run, incl_bwd=True, metric=metric, positions=ROLE | latent)
    expected = plain_gradients(pair, run.unrolled, names)
    for name in names:
        where, gradient = cache.where(name), expected[name]
        columns = run.unrolled.steps[where.rows, where.columns] if name == "hook_latent" else where.columns
        assert relative(cache.flat(f"{name}_grad"), gradient[where.rows, columns]) < 1e-4, name
        assert cache[f"{name}_grad"].shape == cache[name].shape


def test_gradients_where_a_value_is_computed_are_finite_differences(pair, model):
    """A small step along the gradient changes the metric by the step times the squared length of the gradient."""
    run = model.generate(ITEMS[:1])
    names = [name for name in every_name(pair.plain.n_layers) if name.startswith("blocks.0.")]
    names = [name for name in names if name.endswith((*DERIVED, "attn_in", "mlp_in", ".hook_in"))]
    at = latent | ROLE
    _, cache = model.run_with_cache(ITEMS[:1], names, run=run, incl_bwd=True, metric=metric, positions=at)
    double = {name: cache.flat(f"{name}_grad") for name in names}
    for name in names:
        step = 2e-3 / float(double[name].norm())
        moved = []
        for sign in (1, -1):
            shift = sign * step * double[name]
            change = lambda value, hook, shift=shift: value + shift  # noqa: E731
            logits = model.run_with_hooks(ITEMS[:1], [(name, change)], mode="held", run=run, positions=at)
            column = int(run.steps_taken[0])
            moved.append(float(logits[0, column + 1, 20] - logits[0, column + 1, 21] * 0.5))
        slope = (moved[0] - moved[1]) / 2 / step
        assert slope == pytest.approx(float(double[name].square().sum()), rel=0.05), name


def test_a_backward_hook_sees_the_gradient_and_may_replace_it(pair, model):
    run = model.generate(ITEMS)
    seen: dict[str, Tensor] = {}

    def number(logits: Tensor) -> Tensor:
        return logits[:, :, 20].sum(1)

    def keep(gradient: Tensor, *, hook) -> None:
        seen[hook.name] = gradient

    names = ["hook_latent", "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern"]
    model.run_with_hooks(ITEMS, bwd_hooks=[(name, keep) for name in names], mode="held", run=run, metric=number)
    assert set(seen) == {f"{name}_grad" for name in names} and seen["blocks.0.attn.hook_pattern_grad"].ndim == 4
    first = seen["hook_latent_grad"]
    stopped = [("blocks.0.hook_resid_post", lambda gradient, hook: gradient * 0), ("hook_latent", keep)]
    model.run_with_hooks(ITEMS, bwd_hooks=stopped, mode="held", run=run, metric=number)
    last = pair.plain.n_layers == 1
    assert float(first.abs().max()) > 0 and bool((seen["hook_latent_grad"] == 0).all()), last


def test_an_items_gradient_does_not_depend_on_the_items_beside_it_nor_on_batches(model):
    names = ["hook_latent", "resid_post"]
    small = replace(model, batch_size=2)
    _, together = model.run_with_cache(ITEMS, names, positions=latent | ROLE, incl_bwd=True, metric=metric)
    _, parts = small.run_with_cache(ITEMS, names, positions=latent | ROLE, incl_bwd=True, metric=metric)
    for name in together:
        assert relative(parts[name], together[name]) < 1e-4, name
        assert float(together[name].abs().max()) > 0
    with pytest.raises(EditError, match="a single number for one of 2 batches"):
        small.run_with_cache(ITEMS, names, positions=ROLE, incl_bwd=True, metric=lambda logits: logits.sum())


def test_weights_keep_no_gradient_and_no_graph_is_left(model):
    logits, cache = model.run_with_cache(ITEMS, "resid_post", positions=ROLE, incl_bwd=True, metric=metric)
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    assert not logits.requires_grad and not any(value.requires_grad for value in cache.values())


def test_frozen_weights_have_gradients_at_sites_too(pair, model):
    expected = model.run_with_cache(ITEMS, "resid_post", positions=ROLE, incl_bwd=True, metric=metric)[1]
    model.hf.requires_grad_(False)
    try:
        found = model.run_with_cache(ITEMS, "resid_post", positions=ROLE, incl_bwd=True, metric=metric)[1]
    finally:
        model.hf.requires_grad_(True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"incl_bwd": True}, SettingError, "incl_bwd = True and no metric"),
        ({"metric": metric}, SettingError, "incl_bwd = False and a metric"),
        ({"incl_bwd": True, "metric": metric, "stop_at_layer": 1}, SettingError, "stop_at_layer and a metric"),
        ({"incl_bwd": True, "metric": lambda logits: logits[:, 0]}, EditError, "the metric gave"),
        ({"incl_bwd": True, "metric": lambda logits: logits.detach().sum()}, EditError, "a detached tensor"),
        ({"incl_bwd": True, "metric": lambda logits: 3.0}, EditError, "the metric gave a float"),
        ({"names_filter": "resid_pots"}, SiteError, "asks for 'resid_pots'"),
    ],
)
def test_what_cannot_have_a_gradient_is_refused(model, arguments, error, text: str):
    with pytest.raises(error, match=text):
        model.run_with_cache(ITEMS, **{"names_filter": "resid_post", "positions": ROLE, **arguments})
    with pytest.raises(SettingError, match="a free run chooses tokens"):
        model.run_with_hooks(ITEMS, bwd_hooks=[("hook_embed", lambda value, hook: None)], metric=metric)
