"""Edits as data: validation, equality, text, and the JSON form with everything that it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from prismlens.errors import EditError
from prismlens.interventions import (
    Constant,
    Context,
    Cut,
    DeleteKV,
    Edit,
    Identity,
    Mean,
    Noise,
    Operation,
    Project,
    Repeat,
    Scale,
    Shuffle,
    Skip,
    Steer,
    Swap,
    Zero,
)
from prismlens.positions import answer, image, latent, question

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4)
OPERATIONS = st.one_of(
    st.sampled_from([Identity(), Zero(), Shuffle(), Repeat()]),
    st.builds(Mean, st.sampled_from(["step", "stage", "all"])),
    st.builds(Noise, st.floats(0, 1e6), st.sampled_from(["raw", "std", "norm"]), st.booleans()),
    st.builds(lambda over: Noise(1.0, "std", over=over), st.sampled_from(["step", "stage", "all"])),
    st.builds(Scale, st.floats(-1e6, 1e6)),
    st.builds(Constant, NUMBERS),
    st.builds(Steer, NUMBERS.map(lambda some: [1.0, *some]), st.floats(-9, 9), st.sampled_from(["raw", "std"])),
    st.builds(lambda one, keep: Project([[1.0, one]], keep), st.floats(-9, 9), st.sampled_from(["rest", "subspace"])),
    st.builds(
        Swap,
        st.sampled_from(["any", "different-answer", "same-answer", "answer-in-options", "anyone"]),
        st.sampled_from(["different", "any"]),
        st.none() | st.integers(1, 99),
    ),
)
POSITIONS = st.sampled_from([latent, latent[-1], latent[1:3] | answer.source, ~image.box, question[-1]])
MODES = st.sampled_from(["free", "held"])
EDITS = st.one_of(
    st.builds(Edit, OPERATIONS, POSITIONS, st.sampled_from(["hook_latent", "blocks.2.hook_resid_post"]), MODES),
    st.builds(Edit, st.just(DeleteKV()), POSITIONS, mode=MODES, seed=st.integers()),
    st.builds(
        Edit,
        st.builds(Cut, POSITIONS, POSITIONS, *[st.none() | st.sets(st.integers(0, 40), min_size=1).map(tuple)] * 2),
    ),
    st.builds(Edit, st.builds(Skip, st.integers(1, 9), st.booleans()), mode=MODES),
)


@given(EDITS)
def test_json_round_trips(edit: Edit) -> None:
    for again in (Edit.from_json(edit.to_json()), Edit.from_yaml(edit.to_yaml())):
        assert again == edit
        assert hash(again) == hash(edit)
        assert again.to_json() == edit.to_json() and again.to_yaml() == edit.to_yaml()


def test_json_says_what_it_is() -> None:
    record = json.loads(Edit(Noise(1, unit="std"), latent[-1], "blocks.2.hook_resid_post", "held", 3).to_json())
    assert record == {
        "format": "prismlens.edit",
        "version": 1,
        "op": {"name": "Noise", "sigma": 1.0, "unit": "std", "pure": False, "over": "stage"},
        "positions": "latent[-1]",
        "site": "blocks.2.hook_resid_post",
        "mode": "held",
        "seed": 3,
    }
    cut = json.loads(Edit(Cut(to=latent, by=answer, layers=(1, 0))).to_json())
    assert cut["op"] == {"name": "Cut", "to": "latent", "by": "answer", "layers": [0, 1], "heads": None}


def test_yaml_can_be_written_by_hand() -> None:
    text = """
    format: prismlens.edit
    version: 1
    op: {name: Noise, sigma: 0.5, unit: raw, pure: false, over: null}
    positions: latent[-1]
    site: blocks.2.hook_resid_post
    mode: held
    seed: 3
    """
    assert Edit.from_yaml(text) == Edit(Noise(0.5), latent[-1], "blocks.2.hook_resid_post", "held", 3)
    with pytest.raises(EditError, match="is not YAML"):
        Edit.from_yaml("{")
    with pytest.raises(EditError, match="is not an edit"):
        Edit.from_yaml("- 1")


def test_a_notebook_shows_the_parts_and_the_question_escaped() -> None:
    shown = Edit(Steer([1.0, 2.0], 2.0), latent[0])._repr_html_()
    assert "Steer(direction=&lt;2: " in shown and "<2:" not in shown
    assert "does moving along this direction" in shown and "latent[0]" in shown
    cut = Edit(Cut(to=image, by=answer))._repr_html_()
    assert ">positions<" not in cut and ">site<" not in cut

    @dataclass(frozen=True)
    class Named(Own):
        name: str = "<script>alert(1)</script>"

    assert "<script>" not in Edit(Named())._repr_html_()


def changed(**changes: Any) -> str:
    """The JSON of an edit, with some keys set."""
    return json.dumps({**json.loads(Edit(Noise(1.0)).to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an edit"),
        (changed(format="other"), 'needed: an object with "format": "prismlens.edit"'),
        (changed(version=2), "format version 2(.|\n)*another version of prismlens"),
        (changed(colour="red"), "unknown 'colour'"),
        (json.dumps({"format": "prismlens.edit", "version": 1}), "missing 'mode', 'op', 'positions', 'seed', 'site'"),
        (changed(op={"name": "Scale"}), "the operation Scale has keys(.|\n)*missing 'factor'"),
        (changed(op={"name": "Scale", "factor": 1.0, "x": 1}), "unknown 'x'"),
        (changed(op={"name": "Mean", "over": "layer"}), "over='layer'"),
        (changed(op={"name": "Constant", "vector": {"shape": [3], "float64": "AAAA"}}), "numbers that cannot be read"),
        (changed(op={"name": "Constant", "vector": {"shape": [3], "float64": "?"}}), "numbers that cannot be read"),
        (changed(op={"name": "Patch", "source": {"source": "", "digest": ""}}), "a source with name ''"),
        (changed(op={"name": "Explode"}), "one named Constant, Cut, DeleteKV"),
        (changed(op="Zero"), "the operation 'Zero'"),
        (changed(positions="latents"), "the edit's positions cannot be read(.|\n)*closest: latent"),
        (changed(mode="fast"), "mode='fast'(.|\n)*'free', 'held'"),
        (changed(seed=True), "seed=True"),
        (changed(site=""), "site=''"),
    ],
)
def test_json_that_is_not_this_is_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Edit.from_json(text)


@dataclass(frozen=True)
class Own(Operation):
    """An operation of a user's own."""

    def replace(self, value: Float[Tensor, "n d"], context: Context) -> Float[Tensor, "n d"]:
        return value + 1


def test_an_operation_of_ones_own_can_be_an_edit_and_not_saved() -> None:
    with pytest.raises(EditError, match=r"Own\(\) cannot be saved"):
        Edit(Own()).to_json()


def test_defaults_and_text() -> None:
    edit = Edit(Zero())
    assert (edit.positions, edit.site, edit.mode, edit.seed) == (latent, "hook_latent", "free", 0)
    assert str(edit) == "Zero() at hook_latent on latent (free, seed 0)"
    assert str(Edit(DeleteKV(), latent[0])) == "DeleteKV() on latent[0] (free, seed 0)"
    assert str(Edit(Cut(to=image, by=answer))) == "Cut(to=image, by=answer, layers=None, heads=None) (free, seed 0)"
    assert len({Edit(Noise(1)), Edit(Noise(1.0)), Edit(Noise(2.0))}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": Zero(), "mode": "clean"}, "mode='clean'"),
        ({"op": DeleteKV(), "site": "blocks.0.hook_resid_post"}, r"DeleteKV\(\) at the site(.|\n)*no site"),
        ({"op": Cut(latent, answer), "site": "hook_embed"}, "choose layers in Cut"),
        ({"op": Cut(latent, answer), "positions": image}, "Cut names its own positions"),
        ({"op": Skip(1), "positions": latent[0]}, "Skip takes the last latents of the block"),
        ({"op": Skip(1), "site": "kv"}, r"Skip\(n=1, keep_positions=True\) at the site"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        Edit(**arguments)


TYPED = pytest.mark.usefixtures("unchecked")


@TYPED
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": Zero}, "the class was given for an instance"),
        ({"op": "zero"}, "op='zero'"),
        ({"op": Zero(), "positions": "latent"}, "positions='latent'(.|\n)*positions.parse"),
        ({"op": DeleteKV(), "positions": None}, r"DeleteKV\(\) with positions=None"),
        ({"op": Zero(), "site": 3}, "site=3(.|\n)*a hook name"),
        ({"op": Zero(), "seed": 1.5}, "seed=1.5"),
    ],
)
def test_values_of_another_type_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        Edit(**arguments)


@pytest.mark.parametrize("layers", [(), (-1,), (0, 0), (True,)])
def test_cut_refuses_bad_layers(layers: Any) -> None:
    with pytest.raises(EditError, match="different layers, each a whole number of at least 0"):
        Cut(latent, answer, layers)
    with pytest.raises(EditError, match="different heads, each a whole number of at least 0"):
        Cut(latent, answer, heads=layers)


@pytest.mark.parametrize("n", [0, -1, True])
def test_skip_refuses_what_is_no_number_of_latents(n: int) -> None:
    with pytest.raises(EditError, match="a whole number of at least 1"):
        Skip(n)


def test_cut_keeps_layers_sorted() -> None:
    assert Cut(latent, answer, (3, 1)) == Cut(latent, answer, (1, 3))


@TYPED
def test_cut_refuses_other_types() -> None:
    for layers in ((1.0,), "all", 3):
        with pytest.raises(EditError, match="different layers, each a whole number"):
            Cut(latent, answer, layers)  # type: ignore[arg-type]
    with pytest.raises(EditError, match=r"Cut\(by='answer'\)"):
        Cut(latent, "answer")  # type: ignore[arg-type]
