"""Blocks of several stages: the loop against a reference without cache, masks or batch, and the configurations refused."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from prismlens.data.shapes import shapes
from prismlens.errors import CheckpointError, RoleError, SettingError
from prismlens.interventions import Edit, Noise, Swap, Zero
from prismlens.models.loop import LoopSettings, plain_forward, replay_inputs, unroll
from prismlens.models.lvr import LVRForConditionalGeneration, StepOutput
from prismlens.models.processor import LVRProcessor
from prismlens.models.stages import Stage, first_stage, stages
from prismlens.positions import Role, answer, between, latent, resolve
from prismlens.trace import load
from prismlens.training.architecture import initialise, tiny_config, tiny_processor
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled, concatenate, take

ITEMS = shapes(7, seed=3)
LATENT_END, CTX, CTX_END, FREE_START, FREE, FREE_END, TGT, TGT_END = 9, 11, 12, 13, 14, 15, 16, 17
IDS = {
    "ctx_start_id": CTX, "ctx_end_id": CTX_END, "tgt_start_id": TGT, "tgt_end_id": TGT_END,
    "free_start_id": FREE_START, "free_id": FREE, "free_end_id": FREE_END,
}  # fmt: skip
END = {"name": "target", "start": TGT, "steps": 2, "close": [LATENT_END, TGT_END]}
TWO = [{"name": "context", "start": CTX, "steps": 3, "close": [LATENT_END, CTX_END, TGT]}, END]
FAIR = [LATENT_END, CTX_END, FREE_START, *[FREE] * 6, LATENT_END, FREE_END, TGT]
THREE = [{"name": "context", "start": CTX, "steps": 3, "close": FAIR}, END]
OPEN = [{"name": "context", "start": CTX, "steps": 3}, {"name": "target", "start": TGT, "steps": 2}]
LAYOUTS = {"two": TWO, "three": THREE}
EOS, TOKENS = 2, 4


@dataclass(frozen=True, eq=False)
class Case:
    """A random model with stages, its processor, and its settings."""

    model: LVRForConditionalGeneration
    processor: LVRProcessor

    @property
    def settings(self) -> LoopSettings:
        return LoopSettings.of(self.model.config, [EOS], max_new_tokens=TOKENS)

    def run(self, items: list[Item], **kwargs) -> Unrolled:
        return unroll(self.model, self.processor(items), self.settings, **kwargs)


def config_of(layout: list[dict] | None = None, **fields):
    return tiny_config(
        tiny_processor(start=False).tokenizer, width=64, layers=3, latent_stages=layout or [], **IDS | fields
    )


@cache
def case_of(name: str, **fields) -> Case:
    config = config_of(LAYOUTS[name], **fields)
    model = LVRForConditionalGeneration(config).eval()
    initialise(model, 0)
    own = tiny_processor(start=False)
    token = own.tokenizer.convert_ids_to_tokens(first_stage(config).start)
    return Case(model, LVRProcessor(own.image_processor, own.tokenizer, start=token))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@dataclass
class Written:
    """What the reference loop produced after the prompt: ids (0 at latents), latents, and M-RoPE ids."""

    ids: list[int]
    latents: Tensor
    positions: Tensor


@torch.no_grad()
def by_hand(case: Case, item: Item, layout: list[dict], bias: Tensor | None = None) -> Written:
    """One item, one whole forward of transformers a column, no cache; the layout is read as a list of things to do."""
    model, prompt = case.model, case.processor([item])
    config, language = model.config, model.model.language_model
    pixels = model.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output
    embeds = model.get_input_embeddings()(prompt.input_ids)
    embeds[prompt.input_ids == config.image_token_id] = torch.cat(tuple(pixels))
    ids, written, vectors, n_free, todo = prompt.input_ids[0].tolist(), [], [], 0, []
    by_start = {stage["start"]: stage for stage in layout}
    while True:
        if ids[-1] in by_start and not todo:
            stage = by_start[ids[-1]]
            todo = ["latent"] * stage["steps"] + list(stage.get("close", []))
        every = torch.tensor([ids])
        types = (every == config.image_token_id).int()
        positions, _ = model.model.get_rope_index(every, types, image_grid_thw=prompt.image_grid_thw)
        out = language(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state[0, -1]
        action = todo.pop(0) if todo else "token"
        if action == "latent":
            vectors.append(out)
            chosen, column = 0, out
        else:
            if action == "token" and (n_free == TOKENS or (n_free and ids[-1] == EOS)):
                break
            logits = model.lm_head(out) if bias is None else model.lm_head(out) + bias[n_free]
            chosen = int(logits.argmax()) if action == "token" else action
            n_free += action == "token"
            column = model.get_input_embeddings()(torch.tensor(chosen))
        ids.append(chosen)
        written.append(chosen)
        embeds = torch.cat((embeds, column[None, None]), 1)
    return Written(written, torch.stack(vectors), positions[:, 0])


def compare(run: Unrolled, row: int, expected: Written) -> None:
    """The row's ids, latents and positions are those of the reference."""
    kept = run.valid[row]
    after = kept & (torch.arange(run.shape[1]) >= run.n_prompt)
    ids = torch.where(run.steps[row] >= 0, 0, run.input_ids[row])[after]
    assert ids.tolist() == expected.ids
    assert relative(run.latents[row, : len(expected.latents)], expected.latents) < 1e-5
    assert int(run.n_latents[row]) == len(expected.latents)
    assert torch.equal(run.position_ids[:, row, kept], expected.positions)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loop_equals_a_reference_without_cache_alone_and_in_a_padded_batch(name: str):
    case = case_of(name)
    together = case.run(ITEMS[:3])
    assert not bool(together.valid.all()), "the batch has to need padding"
    for row, item in enumerate(ITEMS[:3]):
        expected = by_hand(case, item, LAYOUTS[name])
        compare(case.run([item]), 0, expected)
        compare(together, row, expected)


def columns(role: Role, run: Unrolled, row: int = 0) -> list[int]:
    return (role.mask(run)[row].nonzero().flatten() - run.n_prompt).tolist()


def test_stages_steps_and_segments_of_three_stages():
    run = case_of("three").run(ITEMS[:3])
    for row in range(3):
        assert columns(latent.stage("context"), run, row) == [0, 1, 2]
        assert columns(latent.stage("free"), run, row) == [6, 7, 8, 9, 10, 11]
        assert columns(latent.stage("target"), run, row) == [15, 16]
        assert columns(between, run, row) == list(range(3, 15))
        assert columns(answer, run, row)[:2] == [17, 18]
        assert run.input_ids[row, run.n_prompt + 14] == TGT
        assert run.steps[row][run.steps[row] >= 0].tolist() == [0, 1, 2, 3, 4]
    assert run.stage_names == ("context", "target", "free") and run.n_staged is None
    assert run.n_latents.tolist() == [5, 5, 5]


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_forward_over_the_finished_rows_gives_the_latents_again(name: str):
    case = case_of(name)
    run = case.run(ITEMS[:3])
    prompt = case.processor(run.items)
    with torch.no_grad():
        features = case.model.image_features(prompt.pixel_values, prompt.image_grid_thw)
        out = case.model.step(**replay_inputs(case.model, run), image_features=features)
    for stage in run.stage_names[:2]:
        source, fed = resolve(latent.stage(stage).source, run), resolve(latent.stage(stage), run)
        own = run.latents[fed.rows, run.steps[fed.rows, fed.columns]]
        assert relative(out.hidden[source.rows, source.columns], own) < 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
def test_held_latents_are_fed_through_all_stages(name: str):
    case = case_of(name)
    clean = case.run(ITEMS[:3])
    again = case.run(ITEMS[:3], held=clean.latents)
    assert torch.equal(again.input_ids, clean.input_ids) and torch.equal(again.stages, clean.stages)
    other = torch.randn(clean.latents.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(case.run(ITEMS[:3], held=other).latents, other)


def while_running(case: Case, role: Role) -> list[list[int]]:
    """The columns that a role names at the moment each column after the prompt is run."""
    seen: list[list[int]] = []

    def forward(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
        if n_queries == 1:
            seen.append([column for column in columns(role, run) if column == run.shape[1] - 1 - run.n_prompt])
        return plain_forward(case.model)(run, n_queries, **inputs)

    run = case.run(ITEMS[:1], forward=forward)
    assert [column for now in seen for column in now] == [
        column for column in columns(role, run) if 0 <= column < len(seen)
    ], "named later, or not at all"
    return seen


@pytest.mark.parametrize(
    "role",
    [
        latent[-1], latent[-2:], latent.stage("context")[-1], latent.stage("target")[-1], latent.stage("free")[-1],
        latent.stage("free")[-2], latent.end, latent.stage("context").end, latent.stage("free").end, between, answer,
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", LAYOUTS)
def test_roles_name_the_same_positions_while_the_block_runs_as_when_it_is_over(name: str, role: Role):
    if name == "two" and "free" in str(role):
        return
    while_running(case_of(name), role)


def test_an_edit_of_one_stage_reaches_that_stage_only():
    case = case_of("three")
    model = load((case.model, case.processor))
    model.max_new_tokens = TOKENS
    clean = model.generate(ITEMS[:3])
    view = model.edited(Edit(Noise(1.0), positions=latent.stage("target")[-1], site="hook_latent"))
    run = view.generate(ITEMS[:3])
    assert torch.equal(run.latents, clean.latents), "nothing comes after the last latent"
    swapped = model.edited(Edit(Swap(), positions=latent.stage("context"))).generate(
        ITEMS[:3], reference=model.generate(ITEMS)
    )
    assert torch.equal(swapped.latents[:, 0], clean.latents[:, 0])
    assert not torch.equal(swapped.latents[:, 3:], clean.latents[:, 3:])
    held = model.edited(Edit(Zero(), positions=latent.stage("context"), mode="held")).generate(ITEMS[:3])
    assert torch.equal(held.latents, clean.latents)
    _, kept = model.run_with_cache(ITEMS[:3], "hook_latent", positions=latent.stage("target"), run=clean)
    assert torch.equal(kept["hook_latent"], clean.latents[:, 3:])
    with pytest.raises(RoleError, match=r"latent.stage\('goal'\) .*available stages: 'context', 'target', 'free'"):
        model.edited(Edit(Zero(), positions=latent.stage("goal"))).generate(ITEMS[:1])


def test_a_model_opens_both_stages_by_its_own_tokens():
    # The logits are made to prefer, token by token, what the script says; the reference gets the same preference.
    base = case_of("two")
    config = config_of(OPEN, latent_entry="emitted")
    model = LVRForConditionalGeneration(config).eval()
    model.load_state_dict(base.model.state_dict())
    plain = LVRProcessor(base.processor.image_processor, base.processor.tokenizer, start=False)
    case = Case(model, plain)
    script = [CTX, FREE, TGT, 40]
    bias = torch.zeros(TOKENS, config.text.vocab_size)
    for number, token in enumerate(script):
        bias[number, token] = 1e4
    for item in ITEMS[:2]:
        expected = by_hand(case, item, OPEN, bias)
        assert expected.ids == [CTX, 0, 0, 0, FREE, TGT, 0, 0, 40]

        def forward(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
            out = plain_forward(model)(run, n_queries, **inputs)
            logits = out.logits.clone()
            logits[..., {0: CTX, 4: FREE, 5: TGT, 8: 40}.get(run.shape[1] - run.n_prompt, 0)] += 1e4
            return replace(out, logits=logits)

        run = case.run([item], forward=forward)
        compare(run, 0, expected)
        S = Segment
        assert run.segments[0, run.n_prompt :].tolist() == [
            S.LEAD, S.LATENT, S.LATENT, S.LATENT, S.BETWEEN, S.BETWEEN, S.LATENT, S.LATENT, S.ANSWER,
        ]  # fmt: skip
        assert columns(latent.stage("free"), run) == [4] and columns(latent.stage("target"), run) == [6, 7]


def test_rows_that_open_stages_at_different_times_do_not_touch_each_other():
    base = case_of("two")
    config = config_of(OPEN, latent_entry="emitted")
    model = LVRForConditionalGeneration(config).eval()
    model.load_state_dict(base.model.state_dict())
    case = Case(model, LVRProcessor(base.processor.image_processor, base.processor.tokenizer, start=False))
    scripts = [{0: CTX, 5: TGT}, {1: TGT, 4: CTX}, {}]

    def forward(rows: list[int]):
        def step(run: Unrolled, n_queries: int, **inputs: object) -> StepOutput:
            out = plain_forward(model)(run, n_queries, **inputs)
            logits = torch.full_like(out.logits, -1.0)
            for at, row in enumerate(rows):
                logits[at, -1, scripts[row].get(run.shape[1] - run.n_prompt, 50)] = 1.0
            return replace(out, logits=logits)

        return step

    together = case.run(ITEMS[:3], forward=forward([0, 1, 2]))
    assert together.n_latents.tolist() == [5, 5, 0]
    for row in range(3):
        alone = case.run([ITEMS[row]], forward=forward([row]))
        n = alone.shape[1] - alone.n_prompt
        for field in ("input_ids", "segments", "steps", "stages"):
            mine = getattr(together, field)[row, together.n_prompt :][:n]
            assert mine.tolist() == getattr(alone, field)[0, alone.n_prompt :].tolist(), field
        width = alone.latents.shape[1]
        if width:
            assert relative(together.latents[row, :width], alone.latents[0]) < 1e-5
    assert columns(latent.stage("context"), together, 1) == [5, 6, 7]


def test_joining_and_taking_keep_the_stages():
    case = case_of("three")
    parts = [case.run(ITEMS[:2]), case.run(ITEMS[2:3])]
    whole = concatenate(parts)
    assert whole.stage_names == parts[0].stage_names
    for row, (part, own) in enumerate(((parts[0], 0), (parts[0], 1), (parts[1], 0))):
        for role in (*(latent.stage(name) for name in whole.stage_names), between):
            assert columns(role, whole, row) == columns(role, part, own)
    assert columns(latent.stage("target"), take(whole, [2, 0]), 0) == columns(latent.stage("target"), whole, 2)
    with pytest.raises(RoleError, match=r"stages .* were joined"):
        concatenate([parts[0], replace(parts[1], stage_names=("context", "goal", "free"))])


# --- configurations ---------------------------------------------------------------------------------------------------


def test_which_stages_a_configuration_has():
    one = config_of(ctx_start_id=None, tgt_start_id=None, latent_steps=4, latent_close=[9, 10])
    assert stages(one) == (Stage("latent", 7, 4, (9, 10)),) and first_stage(one).start == 7
    assert stages(config_of(TWO))[0] == Stage("context", CTX, 3, (LATENT_END, CTX_END, TGT))
    # A released P-LVR folder lists no stages: context with twice the budget, target, nothing forced.
    released = config_of(latent_steps=4)
    assert stages(released) == (Stage("context", CTX, 8, scale=1.5), Stage("target", TGT, 4))
    assert stages(config_of(TWO, latent_entry="none")) == ()
    with pytest.raises(CheckpointError, match="a model with latents"):
        first_stage(config_of(latent_entry="none"))


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ([{"name": "a", "start": 11}], {}, 'the fields "name", "start", "steps"'),
        ([{"name": "a", "start": 11, "steps": 1, "stop": 1}], {}, "the stage .*'stop'"),
        ([{"name": "", "start": 11, "steps": 1}], {}, "the stage name ''"),
        ([{"name": "a", "start": "11", "steps": 1}], {}, "'11' in the stage 'a'"),
        ([{"name": "a", "start": 11, "steps": 1, "close": 9}], {}, "the close 9 of the stage 'a'"),
        ([{"name": "a", "start": 11, "steps": 0}], {}, "the stage 'a' with 0 steps"),
        ([{"name": "a", "start": 11, "steps": 1, "scale": 0}], {}, "the scale 0 of the stage 'a'"),
        ([{"name": "free", "start": 11, "steps": 1}], {}, 'a stage of latents called "free"'),
        ([{"name": "a", "start": 11, "steps": 1}, {"name": "a", "start": 12, "steps": 1}], {}, "the name 'a'"),
        ([{"name": "a", "start": 11, "steps": 1}, {"name": "b", "start": 11, "steps": 1}], {}, "the start 11"),
        ([{"name": "a", "start": 11, "steps": 1, "close": [4000]}], {}, "the token id 4000 in the stage 'a'"),
        ([{"name": "a", "start": 11, "steps": 1, "close": [9, 11]}], {}, "forces the stage 'a' again"),
        ([TWO[0], END | {"close": [CTX]}], {}, "forces the stage 'context' again"),
        ([TWO[0] | {"close": [TGT, CTX_END]}, END], {}, "the start id 16 inside the close"),
        (TWO, {"latent_close": [9]}, "latent_close and several stages"),
        (None, {"tgt_start_id": None}, "ctx_start_id and no tgt_start_id"),
        (TWO, {"lvr_id": None}, "config lacks lvr_id"),
        (TWO, {"free_id": 4000}, "token id 4000 among"),
    ],
)
def test_contradictory_stages_are_refused(layout, fields, message: str):
    config = config_of(layout)
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(CheckpointError, match=message):
        config.check_latents()


def test_one_number_is_no_budget_of_several_stages():
    config = config_of(TWO)
    for total in (None, 5):
        settings = LoopSettings.of(config, [EOS], latent_steps=total, max_new_tokens=1)
        assert settings.latent_steps == 5 and [stage.steps for stage in settings.stages] == [3, 2]
    with pytest.raises(SettingError, match=r"latent_steps = 4 for the stages context \(3\), target \(2\)"):
        LoopSettings.of(config, [EOS], latent_steps=4, max_new_tokens=1)
    alone = LoopSettings.of(config_of([END]), [EOS], latent_steps=7, max_new_tokens=1)
    assert [stage.steps for stage in alone.stages] == [7] and alone.latent_steps == 7


def test_the_prompt_ends_with_the_token_that_was_asked_for():
    own = tiny_processor(start=True)
    for start, last in ((True, "<|lvr_start|>"), ("<|ctx_start|>", "<|ctx_start|>")):
        processor = LVRProcessor(own.image_processor, own.tokenizer, start=start)
        assert processor.start_token == last
        assert processor.tokenizer.convert_ids_to_tokens(int(processor(ITEMS[:1]).input_ids[0, -1])) == last
    assert LVRProcessor(own.image_processor, own.tokenizer, start=False).start_token == ""
    with pytest.raises(CheckpointError, match="no token '<\\|nowhere\\|>'"):
        LVRProcessor(own.image_processor, own.tokenizer, start="<|nowhere|>")
