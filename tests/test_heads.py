"""LVR heads, the learned end vector, and the rules by which a stage of latents ends."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError, PrismlensError, SettingError, SiteError
from prismlens.interventions import Edit, Scale, Zero
from prismlens.models.exits import DISTANCES, EXITS, Moment
from prismlens.models.held import block_lengths
from prismlens.models.loop import LoopSettings, plain_forward, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.positions import latent, resolve
from prismlens.sites import HEAD, UNEMBED_IN, site, site_names
from prismlens.trace import PrismModel, load
from prismlens.trace.batch import check_replay
from prismlens.trace.names import matching_names
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.unrolled import Unrolled

ITEMS = shapes(4, seed=3)
PROCESSOR = tiny_processor(start=True)
STEPS, WIDTH, INNER, LATENT_END = 3, 64, 192, 9


def model_of(seed: int = 0, **latent_fields) -> LVRForConditionalGeneration:
    fields = {"latent_steps": STEPS, "latent_close": [9, 10]} | latent_fields
    config = tiny_config(PROCESSOR.tokenizer, width=WIDTH, layers=2, **fields)
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, seed)
    return model


def settings(model: LVRForConditionalGeneration, **changes) -> LoopSettings:
    return replace(LoopSettings.of(model.config, [2], max_new_tokens=3), **changes)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def simple(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """LayerNorm, linear, GELU, linear, written out."""
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    x = (x - mean) / (var + 1e-6).sqrt() * weights["ln_q.weight"] + weights["ln_q.bias"]
    x = x @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return x @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]


def gated(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """down(silu(gate) * up), written out."""
    gate = x @ weights["gate_proj.weight"].T + weights["gate_proj.bias"]
    up = x @ weights["up_proj.weight"].T + weights["up_proj.bias"]
    return (gate * torch.sigmoid(gate) * up) @ weights["down_proj.weight"].T + weights["down_proj.bias"]


SHAPES = {
    "simple": {
        "ln_q.weight": (WIDTH,), "ln_q.bias": (WIDTH,), "mlp.0.weight": (WIDTH, WIDTH), "mlp.0.bias": (WIDTH,),
        "mlp.2.weight": (WIDTH, WIDTH), "mlp.2.bias": (WIDTH,),
    },
    "gated": {
        "gate_proj.weight": (INNER, WIDTH), "gate_proj.bias": (INNER,), "up_proj.weight": (INNER, WIDTH),
        "up_proj.bias": (INNER,), "down_proj.weight": (WIDTH, INNER), "down_proj.bias": (WIDTH,),
    },
}  # fmt: skip
"""Names and shapes of the weights in released folders, after ``lvr_head.``."""
BY_HAND = {"simple": simple, "gated": gated}


@torch.no_grad()
def weights_of(model: LVRForConditionalGeneration) -> dict[str, Tensor]:
    """The head's weights, drawn anew so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.lvr_head.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    prefix = "lvr_head."
    return {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_fed_back_is_the_head_of_the_state_and_logits_come_from_the_state(name: str):
    model = model_of(lvr_head=name)
    weights = weights_of(model)
    assert {key: tuple(value.shape) for key, value in weights.items()} == SHAPES[name]
    outs: list[StepOutput] = []

    def forward(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        outs.append(plain_forward(model)(run, n_queries, **inputs))
        return outs[-1]

    run = unroll(model, PROCESSOR(ITEMS), settings(model), forward=forward)
    for step in range(STEPS):
        state = outs[step].hidden[:, -1]
        assert relative(run.latents[:, step], BY_HAND[name](weights, state)) < 1e-5
        assert relative(run.latents[:, step], state) > 0.1
    out = outs[STEPS]
    assert torch.equal(out.logits, model.lm_head(out.hidden))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "none"),
        ({"lvr_head": False, "lvr_head_type": "simple"}, "none"),
        ({"lvr_head": True}, "simple"),
        ({"lvr_head": True, "lvr_head_type": "simple"}, "simple"),
        ({"lvr_head": True, "lvr_head_type": "glu"}, "gated"),
        ({"lvr_head": "gated"}, "gated"),
    ],
)
def test_a_head_is_named_as_here_or_as_in_released_folders(fields: dict, name: str):
    model = model_of(**fields)
    assert model.config.head == name and model.has_head is (name != "none")
    keys = {key.removeprefix("lvr_head.") for key in model.state_dict() if key.startswith("lvr_head")}
    assert keys == set(SHAPES.get(name, {}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lvr_head": "glu"}, "lvr_head = 'glu'\n  needed: one of none, simple, gated"),
        ({"lvr_head": True, "lvr_head_type": "moe"}, "lvr_head = 'moe'"),
        ({"latent_exit": "end_vector"}, 'latent_exit = "end_vector" and latent_end_token = false'),
        ({"latent_exit": "near"}, "latent_exit = 'near'\n  needed: one of fixed, end_token, end_vector"),
        ({"latent_end_distance": "l1"}, "latent_end_distance = 'l1'\n  needed: one of mse, mae, cosine"),
        ({"latent_end_token": True, "lvr_latent_end_id": None}, "lacks lvr_latent_end_id"),
    ],
)
def test_settings_of_heads_and_exits_that_make_no_sense_are_refused(fields: dict, message: str):
    config = model_of().config
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(CheckpointError, match=message):
        config.check_latents()


# --- the head's site --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headed() -> PrismModel:
    model = load((model_of(lvr_head="gated"), PROCESSOR))
    model.max_new_tokens = 3
    return model


def test_the_heads_site_reads_what_is_fed_back_and_an_edit_there_changes_it(headed: PrismModel):
    assert headed.latent_site == HEAD and site_names(2, head=True)[-1] == HEAD
    assert headed.hf.get_submodule(site(HEAD, 2).path) is headed.hf.hook_latent_head
    run = headed.generate(ITEMS)
    _, cache = headed.run_with_cache(ITEMS, [HEAD, UNEMBED_IN], positions=latent.source, run=run)
    assert relative(cache[HEAD], run.latents) < 1e-5 and relative(cache[UNEMBED_IN], run.latents) > 0.1
    doubled = headed.edited(Edit(Scale(2.0), positions=latent[0], site=HEAD)).generate(ITEMS)
    assert torch.equal(doubled.latents[:, 0], run.latents[:, 0])
    assert relative(doubled.latents[:, 1], 2 * cache_of(headed, run)) < 1e-5


def cache_of(model: PrismModel, run) -> Tensor:
    """The head's output at the first latent: what becomes the second one."""
    _, cache = model.run_with_cache(ITEMS, HEAD, positions=latent[0], run=run)
    return cache[HEAD][:, 0]


def test_the_replay_is_compared_with_what_the_head_gives(headed: PrismModel):
    run = headed.generate(ITEMS).unrolled
    where = resolve(latent.source, run)
    states = torch.zeros(*run.shape, WIDTH)
    states[where.rows, where.columns] = run.latents.flatten(0, 1)
    check_replay(run, states)
    with pytest.raises(PrismlensError, match="the replay's states differ"):
        check_replay(run, states * 1.01)


def test_a_model_without_head_says_why_it_lacks_the_site():
    model = load((model_of(), PROCESSOR))
    assert model.latent_site == UNEMBED_IN and HEAD not in site_names(2)
    for ask in (
        lambda: model.edited(Edit(Zero(), site=HEAD)),
        lambda: model.run_with_cache(ITEMS[:1], HEAD),
        lambda: matching_names([HEAD], 2),
    ):
        with pytest.raises(SiteError, match=r"no LVR head\n[\s\S]*fed back as they are\n[\s\S]*unembed.hook_in"):
            ask()
    assert matching_names(None, 2, head=True)[-1] == HEAD


# --- exits ------------------------------------------------------------------------------------------------------------


def moment(fed: list[list[float]], *, distance: str = "mse", threshold: float = 0.5) -> Moment:
    """Three rows that prefer token 9, 10 and 11; the end vector is (1, 2)."""
    return Moment(torch.tensor([9, 10, 11]), torch.tensor(fed), (9, 10), torch.tensor([1.0, 2.0]), distance, threshold)


def test_what_each_rule_decides_on_hand_made_vectors():
    near = moment([[1.0, 2.9], [1.0, 3.0], [2.0, 4.0]])
    assert EXITS["fixed"](near).tolist() == [False, False, False]
    assert EXITS["end_token"](near).tolist() == [True, True, False]
    # mean squared differences 0.405, 0.5 (not below the threshold) and 2.5
    assert EXITS["end_vector"](near).tolist() == [True, False, False]
    values = {name: DISTANCES[name](near.fed, near.end_vector) for name in DISTANCES}
    assert torch.allclose(values["mse"], torch.tensor([0.405, 0.5, 2.5]))
    assert torch.allclose(values["mae"], torch.tensor([0.45, 0.5, 1.5]))
    cosines = torch.tensor([6.8 / (5 * 9.41) ** 0.5, 7 / 50**0.5, 1.0])
    assert torch.allclose(values["cosine"], 1 - cosines, atol=1e-6)


VECTOR = {"latent_exit": "end_vector", "latent_end_token": True, "latent_close": [10], "latent_steps": 4}


def test_a_row_leaves_after_the_latent_that_is_near_the_end_vector_and_the_cap_holds_for_the_others():
    model = model_of(**VECTOR)
    full = unroll(model, PROCESSOR(ITEMS), settings(model, latent_exit="fixed"))
    with torch.no_grad():
        model.lvr_latent_end_emb.copy_(full.latents[1, 1])  # type: ignore[union-attr]
    nearest = DISTANCES["mse"](full.latents.flatten(0, 1), full.latents[1, 1]).reshape(4, 4)
    nearest[1, 1] = 9.0
    model.config.latent_end_threshold = float(nearest.min()) / 2
    run = unroll(model, PROCESSOR(ITEMS), settings(model))
    assert run.n_latents.tolist() == [4, 2, 4, 4]
    first = run.n_prompt
    assert run.input_ids[1, first + 2] == 10, "the near vector is fed, and what is forced follows it"
    assert relative(run.latents[1, :2], full.latents[1, :2]) < 1e-5 and not run.latents[1, 2:].any()
    # Without forced ids the next token is the one that the logits at the near vector prefer.
    outs: list[StepOutput] = []

    def forward(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        outs.append(plain_forward(model)(run, n_queries, **inputs))
        return outs[-1]

    loose = unroll(model, PROCESSOR(ITEMS[1:2]), settings(model, latent_close=()), forward=forward)
    assert loose.n_latents.tolist() == [2]
    assert loose.input_ids[0, loose.n_prompt + 2] == outs[2].logits[0, -1].argmax()


def test_the_end_vector_is_the_embedding_of_its_token():
    model = model_of(**VECTOR | {"latent_exit": "fixed", "latent_close": [LATENT_END, 10]})
    vector = model.lvr_latent_end_emb
    assert vector is not None and abs(float(vector.detach().norm()) - WIDTH**0.5) < 1e-4
    entered: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0][:, -1]))
    try:
        unroll(model, PROCESSOR(ITEMS), settings(model))
    finally:
        handle.remove()
    assert torch.equal(entered[5], vector.detach().expand(4, -1))
    assert torch.equal(entered[6], model.get_input_embeddings()(torch.tensor([10] * 4)))
    assert model_of().lvr_latent_end_emb is None and "lvr_latent_end_emb" not in model_of().state_dict()
    assert model.state_dict()["lvr_latent_end_emb"].shape == (WIDTH,)


# --- held blocks ------------------------------------------------------------------------------------------------------


def leaving_at(model: LVRForConditionalGeneration, when: dict[int, int]):
    """The model's forward, each row made to prefer the end marker at its latent of that number."""

    def forward(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        out = plain_forward(model)(run, n_queries, **inputs)
        logits = torch.full_like(out.logits, -1.0)
        for row in range(len(logits)):
            ends = bool(run.steps[row, -1] == when.get(row, 99))
            logits[row, -1, LATENT_END if ends else 50] = 1.0
        return replace(out, logits=logits)

    return forward


def test_a_held_block_is_as_long_as_in_the_clean_run_whatever_the_rule_says_now():
    model = model_of(latent_exit="end_token", latent_close=[])
    own = settings(model)
    clean = unroll(model, PROCESSOR(ITEMS), own, forward=leaving_at(model, {0: 0, 1: 1}))
    assert clean.n_latents.tolist() == [1, 2, 3, 3]
    assert block_lengths(clean).tolist() == [[1], [2], [3], [3]]
    # The other way about: rows that left would stay, and rows that stayed would leave.
    for now in ({}, {2: 0, 3: 1}):
        held = unroll(
            model, PROCESSOR(ITEMS), own, forward=leaving_at(model, now), held=clean.latents,
            held_blocks=block_lengths(clean),
        )  # fmt: skip
        assert held.n_latents.tolist() == [1, 2, 3, 3] and torch.equal(held.latents, clean.latents)


def test_a_row_that_enters_where_its_clean_run_did_not_is_an_error_that_names_it():
    model = model_of()
    clean = unroll(model, PROCESSOR(ITEMS), settings(model))
    blocks = block_lengths(clean)
    blocks[2] = 0
    with pytest.raises(SettingError, match=f"too few for 1 items: {ITEMS[2].id}\n[\\s\\S]*never entered a block"):
        unroll(model, PROCESSOR(ITEMS), settings(model), held=clean.latents, held_blocks=blocks)
    blocks[2] = 2
    with pytest.raises(SettingError, match="latent 2 too"):
        unroll(model, PROCESSOR(ITEMS), settings(model), held=clean.latents, held_blocks=blocks)


def test_a_held_edit_of_a_model_that_decides_itself_feeds_each_row_its_own_latents():
    hf = model_of(latent_exit="end_token", latent_close=[], latent_steps=4)
    with torch.no_grad():  # the marker is preferred at states like that of the second item's second latent
        full = unroll(hf, PROCESSOR(ITEMS), settings(hf, latent_exit="fixed")).latents
        own, mean = full[1, 2], full.mean((0, 1))
        apart = own - mean * (own @ mean) / (mean @ mean)
        hf.lm_head.weight[LATENT_END] = 20 * apart / apart.norm() ** 2
    model = load((hf, PROCESSOR))
    model.max_new_tokens = 3
    clean = model.generate(ITEMS)
    counts = clean.steps_taken.tolist()
    assert len(set(counts)) > 1, f"rows have to differ: {counts}"
    held = model.edited(Edit(Zero(), positions=latent, mode="held")).generate(ITEMS, reference=clean)
    assert held.steps_taken.tolist() == counts and torch.equal(held.latents, clean.latents)
