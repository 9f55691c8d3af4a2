"""Free sweeps against runs of an untraced twin that plain hooks patch during one forward."""

import math

import pytest
import torch
from torch import Tensor

from prismlens.data.pairs import load_pairs
from prismlens.errors import RoleError, SettingError
from prismlens.models.answers import answer_start
from prismlens.patching import patching_sweep
from prismlens.positions import Role, answer, image, latent, question
from prismlens.unrolled import Segment, Unrolled
from tests.plain_hooks import LAYERS, Change, Record, Twins, plain_run, reading, twins, whole

PAIRS = load_pairs("shapes", 3, seed=6)


def two_ids(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins(seed=4)


def measured(pair: Twins, run: Unrolled, record: Record) -> list[float]:
    """The metric where each row's answer starts, NaN where it has none."""
    out = []
    for row in range(run.shape[0]):
        columns = (run.segments[row] == Segment.ANSWER).nonzero().flatten().tolist()
        start = answer_start(pair.processor, run.input_ids[row, columns].tolist())
        at = math.nan if start is None else float(two_ids(record.logits[columns[start] - run.n_prompt])[row])
        out.append(at)
    return out


def plain_patch(pair: Twins, name: str, role: Role, forward: int) -> list[float]:
    """The corrupted items run anew on the untraced twin, the role's positions as in the clean replay."""
    clean, _ = plain_run(pair, [*PAIRS.clean])
    corrupted, _ = plain_run(pair, [*PAIRS.corrupted])
    with torch.no_grad(), reading(pair.plain, [name]) as kept:
        pair.plain.step(**whole(pair, clean))
    mask, given = role.mask(corrupted), kept[name][0]

    def change(value: Tensor) -> Tensor:
        out = value.clone()
        for row, column in mask.nonzero().tolist():
            if name == "hook_latent":
                out[row, 0] = given[row, corrupted.steps[row, column]]
            else:
                out[row, column if forward == 0 else 0] = given[row, column]
        return out

    changes: dict[int, list[tuple[str, Change]]] = {forward: [(name, change)]}
    return measured(pair, *plain_run(pair, [*PAIRS.corrupted], changes))


@pytest.mark.parametrize(
    ("name", "site", "role", "forward"),
    [
        ("resid_post", "blocks.1.hook_resid_post", image, 0),
        ("resid_mid", "blocks.1.hook_resid_mid", question[-2], 0),
        ("mlp_out", "blocks.1.hook_mlp_out", latent[1], 2),
        ("resid_pre", "blocks.1.hook_resid_pre", latent[0], 1),
        ("latent", "hook_latent", latent[0], 1),
    ],
)
def test_a_free_patch_is_a_run_that_plain_hooks_patch_in_one_forward(pair, name, site, role, forward):
    found = patching_sweep(
        pair.traced, PAIRS.clean, PAIRS.corrupted, name, metric=two_ids, mode="free", positions=role, min_gap=1e-12
    ).rows
    rows = (found if name == "latent" else found[found.layer == 1]).set_index("pair")
    wanted = plain_patch(pair, site, role, forward)
    own = measured(pair, *plain_run(pair, [*PAIRS.corrupted]))
    other = measured(pair, *plain_run(pair, [*PAIRS.clean]))
    kept = [row for row, one in enumerate(PAIRS) if one.clean.id in rows.index]
    assert kept, "some pair is measured"
    for row in kept:
        cell = rows.loc[PAIRS[row].clean.id]
        assert (cell.corrupted, cell.clean) == pytest.approx((own[row], other[row]), abs=2e-5)
        assert cell.patched == pytest.approx(wanted[row], abs=2e-5, nan_ok=True)
    assert any(abs(wanted[row] - own[row]) > 1e-4 for row in kept), "the patch does something here"


def test_a_patch_acts_through_the_latents_only_in_free_mode():
    """After the block nothing sees the image, so an image patch can only act through what latents become."""
    blind = twins(
        seed=4,
        visibility=[
            {"query": "answer", "key": key, **layers}
            for key, layers in (("prompt", {}), ("latent", {"layers": list(range(1, LAYERS))}))
        ],
    )
    sweeps = {
        mode: patching_sweep(
            blind.traced,
            PAIRS.clean,
            PAIRS.corrupted,
            "resid_pre",
            metric=two_ids,
            mode=mode,
            positions=image,
            min_gap=1e-12,
        ).rows
        for mode in ("held", "free")
    }
    held, free = (rows[rows.layer == 0] for rows in sweeps.values())
    assert len(held) and (held.patched == held.corrupted).all()
    assert len(free) and (free.patched != free.corrupted).all()


def test_only_the_prompt_and_latents_can_be_patched(pair):
    with pytest.raises(RoleError, match="lies behind the last position that can be patched"):
        patching_sweep(
            pair.traced, PAIRS.clean, PAIRS.corrupted, "mlp_out", metric=two_ids, mode="free", positions=answer
        )


def test_there_is_no_gradient_through_chosen_tokens(pair):
    with pytest.raises(SettingError, match="method='both' in mode=\"free\""):
        patching_sweep(pair.traced, PAIRS.clean, PAIRS.corrupted, "mlp_out", mode="free", method="both")
