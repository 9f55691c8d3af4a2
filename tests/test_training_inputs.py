"""What the slots are fed: noise that belongs to its row, vectors that say nothing, latents of other images."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from prismlens.errors import SettingError
from prismlens.training import inputs
from prismlens.training.batch import Batch
from prismlens.training.inputs import FOREIGN_SHARE, PASSES, WAVES, row_noise, uninformative
from prismlens.training.passes import Pass, own_pass
from prismlens.training.variants import INPUTS, VARIANTS
from tests.training_cases import Case, case_of, relative

WIDTH = 16


def small(counts: list[int], seeds: list[int]) -> Batch:
    """A batch whose rows have so many slots; nothing else of it is read."""
    batch = case_of("lvr", waves=False).batch
    feature = torch.full((len(counts), max(counts)), -1)
    for row, count in enumerate(counts):
        feature[row, :count] = torch.arange(count)
    return replace(batch, slot_feature=feature, seeds=tuple(seeds), **spread(batch, len(counts), max(counts)))


def spread(batch: Batch, rows: int, slots: int) -> dict[str, torch.Tensor]:
    """Fields of the right sizes."""
    empty = torch.zeros(rows, slots, dtype=torch.long)
    columns = {name: getattr(batch, name)[:1].expand(rows, *getattr(batch, name).shape[1:]) for name in (
        "blocks", "groups", "labels", "facts",
    )}  # fmt: skip
    return {"words": empty, "slot_part": empty, "sources": empty, **columns}


def targets_of(batch: Batch, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*batch.slot_feature.shape, WIDTH, generator=torch.Generator().manual_seed(seed))
    return made * batch.slots[..., None]


def recording(fed: list[torch.Tensor]):
    """In place of `forced_pass`: keeps what is fed, and runs nothing."""

    def forced(model, batch, features, given, layers) -> Pass:
        fed.append(given)
        return Pass(given, given, given, {})

    return forced


def test_a_rows_noise_is_its_seed_whatever_stands_beside_it():
    wide, narrow, alone = small([40, 9], [3, 4]), small([9, 9, 2], [4, 5, 6]), small([9], [4])
    noises = [row_noise(batch, targets_of(batch)) for batch in (wide, narrow, alone)]
    assert torch.equal(noises[0][1, :9], noises[1][0]) and torch.equal(noises[1][0], noises[2][0])
    assert not noises[0][1, 9:].any(), "where a row has no slot there is none"
    assert not torch.equal(noises[1][0], noises[1][1])


def test_noise_is_standard_normal_and_independent_of_the_global_generator():
    batch = small([400], [11])
    torch.manual_seed(0)
    one = row_noise(batch, targets_of(batch))
    torch.manual_seed(1)
    assert torch.equal(one, row_noise(batch, targets_of(batch)))
    assert stats.kstest(one.flatten().numpy(), "norm").pvalue > 1e-3


@torch.no_grad()
def test_noise_is_added_to_what_is_fed_and_never_to_the_targets(monkeypatch: pytest.MonkeyPatch):
    case = case_of("lvr", waves=False)
    targets, fed = case.targets.clone(), []
    monkeypatch.setattr(inputs, "forced_pass", recording(fed))
    for noise in (0.0, 0.3):
        PASSES["target"](case.model, case.batch, case.features, targets, noise, ())
        assert torch.equal(targets, case.targets)
    assert torch.equal(fed[0], targets)
    assert torch.allclose(fed[1] - targets, 0.3 * row_noise(case.batch, targets), atol=1e-6)
    spread = (fed[1] - targets)[case.batch.slots].std().item()
    assert spread == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("way", ["uninformative", "foreign", "own"])
@torch.no_grad()
def test_no_other_way_adds_noise(way: str):
    case = case_of("slot", waves=True)
    with_, without = (
        PASSES[way](case.model, case.batch, case.features, case.targets, noise, ()).states for noise in (0.5, 0.0)
    )
    assert torch.equal(with_, without)


def test_uninformative_inputs_are_zeros_noise_and_other_rows_targets_in_equal_parts():
    kinds = {"zero": 0, "other": 0, "noise": 0}
    scales = []
    for seed in range(60):
        batch = small([6, 6, 6], [seed, seed + 1000, seed + 2000])
        targets = targets_of(batch, seed)
        for row, vectors in enumerate(uninformative(batch, targets)):
            same = (vectors[:, None] == targets.flatten(0, 1)).all(-1).unflatten(1, targets.shape[:2])
            assert not same[:, row].any(), "never its own"
            zero, other = (vectors == 0).all(-1), same.any(-1).any(-1)
            noise = ~zero & ~other
            kinds["zero"] += int(zero.sum())
            kinds["other"] += int(other.sum())
            kinds["noise"] += int(noise.sum())
            scales += [vector.std().item() for vector in vectors[noise]]
    total = sum(kinds.values())
    assert all(abs(count / total - 1 / 3) < 0.05 for count in kinds.values()), kinds
    assert min(scales) < 0.3 and max(scales) > 1.7, "noise of every scale from 0 to 2"


def test_uninformative_inputs_do_not_depend_on_the_rows_own_targets():
    batch = small([6, 6, 6], [1, 2, 3])
    targets = targets_of(batch)
    for row in range(3):
        changed = targets.clone()
        changed[row] = torch.randn_like(changed[row])
        assert torch.equal(uninformative(batch, targets)[row], uninformative(batch, changed)[row])


def test_what_a_row_draws_does_not_depend_on_how_many_slots_its_neighbours_have():
    for seed in range(20):
        narrow, wide = small([6, 6], [seed, 99]), small([6, 30], [seed, 99])
        drawn = [uninformative(batch, torch.zeros(*batch.slot_feature.shape, WIDTH))[0, :6] for batch in (narrow, wide)]
        assert torch.equal(*drawn)


def test_foreign_inputs_keep_noise_of_every_scale(monkeypatch: pytest.MonkeyPatch):
    """Whether a slot is fed another's latent, and how strong its noise would be, are drawn apart."""
    fed: list[torch.Tensor] = []
    own = torch.full((2, 40, WIDTH), 9.0)
    monkeypatch.setattr(inputs, "forced_pass", recording(fed))
    monkeypatch.setattr(inputs, "own_pass", lambda *a: Pass(own, own, own, {}))
    model = case_of("slot", waves=True).model
    for seed in range(40):
        batch = small([40, 40], [seed, seed + 500])
        PASSES["foreign"](model, batch, own[0], torch.zeros(2, 40, WIDTH), 0.0, ())
    vectors = torch.cat([given.flatten(0, 1) for given in fed])
    foreign = (vectors == 9).all(-1)
    assert foreign.float().mean().item() == pytest.approx(FOREIGN_SHARE, abs=0.03)
    strengths = vectors[~foreign & vectors.any(-1)].std(-1)
    assert strengths.min() < 0.3 and strengths.max() > 1.7


@torch.no_grad()
def test_foreign_latents_are_those_of_another_row(monkeypatch: pytest.MonkeyPatch):
    case: Case = case_of("slot", waves=True)
    own = own_pass(case.model, case.batch, case.features).sources
    fed: list[torch.Tensor] = []
    monkeypatch.setattr(inputs, "forced_pass", recording(fed))
    PASSES["foreign"](case.model, case.batch, case.features, case.targets, 0.0, ())
    taken = (fed[0][:, :4] == own.flip(0)[:, :4]).all(-1)
    assert taken.any() and not (fed[0] == own)[case.batch.slots].all(-1).any()
    assert not fed[0].requires_grad


@pytest.mark.parametrize("way", ["uninformative", "foreign"])
def test_a_row_alone_has_no_other_to_be_fed_from(way: str):
    case = case_of("slot", waves=True)
    batch = small([4], [1])
    with pytest.raises(SettingError, match="a micro-batch of one pack\n  needed: two"):
        if way == "uninformative":
            uninformative(batch, targets_of(batch))
        else:
            one = replace(case.batch, seeds=case.batch.seeds[:1])
            PASSES[way](case.model, one, case.features, case.targets, 0.0, ())


@torch.no_grad()
def test_own_latents_are_fed_by_the_loop():
    case = case_of("lvr", waves=True)
    ours = PASSES["own"](case.model, case.batch, case.features, case.targets, 0.0, ())
    assert relative(ours.sources, own_pass(case.model, case.batch, case.features).sources) < 1e-6
    teacher = PASSES["target"](case.model, case.batch, case.features, case.targets, 0.0, ())
    assert relative(ours.sources, teacher.sources) > 1e-3


def test_every_name_in_a_phase_has_its_way_and_those_with_own_latents_their_layout():
    assert set(PASSES) == set(INPUTS) >= WAVES
    assert {"foreign", "own"} == WAVES
    assert {phase.inputs for variant in VARIANTS.values() for phase in variant.phases} == set(INPUTS)
