"""Sweeps over attention heads against slices of the projections, patched by plain hooks on an untraced twin."""

import pytest
import torch
from torch import Tensor

from prismlens.data.pairs import load_pairs
from prismlens.errors import SiteError
from prismlens.patching import patching_sweep
from prismlens.positions import Role, image, latent
from prismlens.sites import site_names
from tests.plain_hooks import LAYERS, Twins, plain_run, twins, whole

SERVED = "blocks.0.attn.hook_z" in site_names(1)
needs_heads = pytest.mark.skipif(not SERVED, reason="no site attn.hook_z: values are not split into heads here")
PAIRS = load_pairs("shapes", 2, seed=6)
ROLES: list[Role] = [latent, image]
MODULES = {"out": ("o_proj", True), "q": ("q_proj", False), "k": ("k_proj", False), "v": ("v_proj", False)}
"""Projection of a site, and whether the site is its input."""
LAYER = 1


def two_ids(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins(seed=4)


def sweep(pair: Twins, name: str, **keywords):
    keywords = {"metric": two_ids, "min_gap": 1e-12, "positions": ROLES, **keywords}
    return patching_sweep(pair.traced, PAIRS.clean, PAIRS.corrupted, name, **keywords)


class Plain:
    """Whole forwards of the corrupted side on the untraced twin; one slice of a projection may come from the clean."""

    def __init__(self, pair: Twins) -> None:
        self.model = pair.plain
        self.clean, self.corrupted = (plain_run(pair, [*side])[0] for side in (PAIRS.clean, PAIRS.corrupted))
        self.inputs = {name: whole(pair, run) for name, run in (("clean", self.clean), ("corrupted", self.corrupted))}
        firsts = [pair.traced.generate([*side]).unrolled.answer_first for side in (PAIRS.clean, PAIRS.corrupted)]
        self.source = []
        for row, (a, b) in enumerate(zip(self.clean.input_ids, self.corrupted.input_ids, strict=True)):
            apart = [c for c, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=False)) if x != y]
            self.source.append(min([*apart, *(int(first[row]) for first in firsts if first[row] >= 0)]) - 1)

    @property
    def attention(self):
        return self.model.model.language_model.layers[LAYER].self_attn

    @torch.no_grad()
    def values(self, name: str, side: str = "clean") -> Tensor:
        """All columns of the projection's end on one side."""
        kept: list[Tensor] = []
        handle = self._hook(name, lambda value: kept.append(value.clone()))
        self.model.step(**self.inputs[side])
        handle.remove()
        return kept[0]

    @torch.no_grad()
    def metric(self, name: str, given: Tensor, part: slice, mask: Tensor) -> list[float]:
        """The metric where the slice of the last axis is `given` at the mask's positions."""

        def change(value: Tensor) -> Tensor:
            out = value.clone()
            out[..., part] = torch.where(mask[..., None], given[..., part], value[..., part])
            return out

        handle = self._hook(name, change)
        hidden = self.model.step(**self.inputs["corrupted"]).hidden
        handle.remove()
        return two_ids(self.model.lm_head(torch.stack([hidden[i, c] for i, c in enumerate(self.source)]))).tolist()

    def _hook(self, name: str, change):
        module, before = getattr(self.attention, MODULES[name][0]), MODULES[name][1]
        if before:
            return module.register_forward_pre_hook(
                lambda _, args: None if (new := change(args[0])) is None else (new,)
            )
        return module.register_forward_hook(lambda _, args, output: change(output))


def check(found, role: Role, head: int, wanted: list[float], own: list[float]) -> None:
    rows = found.rows[(found.rows.layer == LAYER) & (found.rows["pos"] == str(role)) & (found.rows["head"] == head)]
    assert list(rows.set_index("pair").patched[[one.clean.id for one in PAIRS]]) == pytest.approx(wanted, abs=2e-5)
    assert any(abs(a - b) > 1e-4 for a, b in zip(wanted, own, strict=True)) or role is not latent


@needs_heads
@pytest.mark.parametrize("name", list(MODULES))
def test_a_head_is_a_slice_of_its_projection(pair, name: str):
    plain, found = Plain(pair), sweep(pair, f"attn_head_{name}_by_pos")
    width = plain.attention.head_dim
    given, nothing = plain.values(name), torch.zeros_like(plain.corrupted.valid)
    heads = given.shape[-1] // width
    assert found.axes == ("layer", "pos", "head") and found.tensor.shape == (LAYERS, len(ROLES), heads)
    own = plain.metric(name, given, slice(0), nothing)
    for role in ROLES:
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            check(found, role, head, plain.metric(name, given, part, role.mask(plain.corrupted)), own)


@needs_heads
def test_a_pattern_reads_the_receivers_values_with_the_donors_weights(pair):
    plain, found = Plain(pair), sweep(pair, "attn_head_pattern_by_pos")
    attention = plain.attention
    width, shared = attention.head_dim, attention.num_key_value_groups
    items = [*PAIRS.clean]
    _, cache = pair.traced.run_with_cache(items, [f"blocks.{LAYER}.attn.hook_pattern"])
    stop = int(plain.corrupted.limit) if hasattr(plain.corrupted, "limit") else plain.corrupted.shape[1]
    values = plain.values("v", "corrupted")
    own = plain.metric("out", plain.values("out"), slice(0), torch.zeros_like(plain.corrupted.valid))
    pattern = full_pattern(cache, f"blocks.{LAYER}.attn.hook_pattern", plain.clean, stop)
    for role in ROLES:
        for head in range(attention.num_key_value_groups * values.shape[-1] // width):
            part = slice(head * width, (head + 1) * width)
            kv = slice(head // shared * width, (head // shared + 1) * width)
            mixed = torch.zeros_like(plain.values("out"))
            mixed[..., part] = pattern[:, head] @ values[:, :, kv]
            check(found, role, head, plain.metric("out", mixed, part, role.mask(plain.corrupted)), own)


def full_pattern(cache, name: str, run, stop: int) -> Tensor:
    """``[batch, head, query, key]`` over all columns, zero at padding."""
    value = cache[name]
    if value.ndim == 4 and value.shape[2] == stop:
        return value
    flat = cache.flat(name)  # one row a valid query: [n, head, key]
    out = flat.new_zeros(*run.valid.shape, *flat.shape[1:])
    out[run.valid] = flat
    return out.transpose(1, 2)


@needs_heads
@pytest.mark.parametrize("name", ["out", "k", "pattern"])
def test_all_positions_together_are_one_place(pair, name: str):
    found, by_pos = sweep(pair, f"attn_head_{name}_all_pos", positions=latent), sweep(pair, f"attn_head_{name}_by_pos")
    assert found.axes == ("layer", "head") and torch.allclose(found.tensor, by_pos.tensor[:, 0], atol=1e-3)


@needs_heads
def test_every_kind_of_head_at_once(pair):
    found = sweep(pair, "attn_head_all_pos_every", positions=latent)
    assert found.axes == ("site", "layer", "head")
    for number, name in enumerate(("out", "q", "k", "v", "pattern")):
        alone = sweep(pair, f"attn_head_{name}_all_pos", positions=latent).tensor
        heads = alone.shape[1]
        assert torch.allclose(found.tensor[number, :, :heads], alone, atol=1e-3)
        assert found.tensor[number, :, heads:].isnan().all(), "keys and values have fewer heads"


@needs_heads
def test_a_hidden_latent_restores_exactly_nothing_in_any_head():
    hidden = twins(seed=4, visibility=[{"query": "answer", "key": "latent"}])
    found = sweep(hidden, "attn_head_pattern_by_pos", positions=[latent], mode="held").rows
    assert len(found) and (found.patched == found.corrupted).all(), "not one bit"


@needs_heads
def test_the_slope_of_all_heads_is_the_slope_of_the_whole(pair):
    """What attention writes is linear in z, so both have the same first-order effect."""
    heads = sweep(pair, "attn_head_out_by_pos", method="attribution").attribution
    whole_ = sweep(pair, "attn_out", method="attribution").attribution
    assert torch.allclose(heads.sum(2), whole_, atol=1e-3)


def test_without_heads_a_sweep_over_them_is_refused(pair):
    if SERVED:
        pytest.skip("heads are served")
    for name, says in (("q", "heads of 'blocks.0.attn.hook_q'"), ("out", "no site is called 'blocks.0.attn.hook_z'")):
        with pytest.raises(SiteError, match=says.replace(".", r"\.")):
            sweep(pair, f"attn_head_{name}_by_pos")
