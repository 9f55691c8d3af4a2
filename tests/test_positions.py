"""Roles: what each one names on a hand-made batch, how they combine, their text, and the errors."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from prismlens.errors import RoleError
from prismlens.positions import (
    NAMES,
    Role,
    answer,
    between,
    describe,
    image,
    latent,
    lead,
    options,
    parse,
    prompt,
    question,
    resolve,
    template,
)
from prismlens.types import Item
from prismlens.unrolled import Segment, Unrolled

KEYS = {".": Segment.PAD, **{segment.name[0]: segment for segment in Segment if segment != Segment.PAD}}
KEYS["Z"], KEYS["L"] = Segment.LATENT, Segment.LEAD
#        0         1         2
#        0123456789012345678901
ROWS = ("..TIIIIQQOLZZZZAAAA...", "TTTIIIIQQOLZZAAA......", ".TTIIIIQQOLAAA........")
LAST_STEPS = (4, 2, 0)
ANSWER_FIRST = (17, 14, -1)


STAGED = ("..TIIIIQQOLZZZBFFBZZAAA", "TTTIIIIQQOLZZBFFBZAAAA.", ".TTIIIIQQOLAAA.........")
"""Rows with a context stage (three, two latents), two free tokens (F), a target stage (two, one), and none of these."""
STAGES = ("context", "target", "free")


def build(rows: tuple[str, ...] = ROWS, n_latents: tuple[int, ...] = LAST_STEPS) -> Unrolled:
    """A batch of three rows: four latents, two latents, none (and there no answer text and no box)."""
    letters = [row.replace("F", "B") for row in rows]
    segments = torch.tensor([[int(KEYS[letter]) for letter in row] for row in letters])
    batch, pos = segments.shape
    is_latent, is_image = segments == Segment.LATENT, segments == Segment.IMAGE
    place = torch.where(is_image, is_image.long().cumsum(1) - 1, -1)
    picture = PilImage.new("RGB", (56, 56))
    boxes = (((0.5, 0.0, 1.0, 0.5),), ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)), ())
    return Unrolled(
        items=tuple(Item(picture, "?", id=name, boxes=box) for name, box in zip("abc", boxes, strict=True)),
        input_ids=torch.arange(batch * pos).reshape(batch, pos),
        segments=segments,
        steps=torch.where(is_latent, is_latent.long().cumsum(1) - 1, -1),
        patches=torch.stack([torch.where(is_image, place // 2, -1), torch.where(is_image, place % 2, -1)], dim=-1),
        grids=torch.full((batch, 2), 2),
        position_ids=torch.arange(3 * batch * pos).reshape(3, batch, pos),
        latents=torch.zeros(batch, max(n_latents), 8),
        n_latents=torch.tensor(n_latents),
        n_prompt=11,
        answer_first=torch.tensor(ANSWER_FIRST),
        stages=torch.full((batch, pos), -1),
    )


def staged() -> Unrolled:
    """The rows of `STAGED`, with their stages named."""
    numbers = torch.full((3, len(STAGED[0])), -1)
    for row, letters in enumerate(STAGED):
        for column, letter in enumerate(letters):
            if letter in "ZF":
                numbers[row, column] = 2 if letter == "F" else int("F" in letters[:column])
    unrolled = build(STAGED, (5, 3, 0))
    return replace(unrolled, stages=numbers, stage_names=STAGES)


def columns(role: Role, row: int, unrolled: Unrolled | None = None) -> list[int]:
    """The columns that a role names in one row."""
    return role.mask(unrolled or build())[row].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("role", "first", "second"),
    [
        (template, [2], [0, 1, 2]),
        (image, [3, 4, 5, 6], [3, 4, 5, 6]),
        (question, [7, 8], [7, 8]),
        (options, [9], [9]),
        (lead, [10], [10]),
        (latent, [11, 12, 13, 14], [11, 12]),
        (answer, [15, 16, 17, 18], [13, 14, 15]),
        (prompt, list(range(2, 11)), list(range(11))),
        (latent[0], [11], [11]),
        (latent[-1], [14], [12]),
        (latent[1:3], [12, 13], [12]),
        (latent[::2], [11, 13], [11]),
        (latent[3], [14], []),
        (latent[-3], [12], []),
        (latent.source, [10, 11, 12, 13], [10, 11]),
        (latent.source[-1], [13], [11]),
        (latent.end, [15], [13]),
        (image.box, [4], [3, 6]),
        (image.box[-1], [4], [6]),
        (answer.first, [17], [14]),
        (answer.source, [16], [13]),
        (question[-1], [8], [8]),
        (answer[0], [15], [13]),
        (latent[-1] | answer.source, [14, 16], [12, 13]),
        (prompt - image, [2, 7, 8, 9, 10], [0, 1, 2, 7, 8, 9, 10]),
        (latent & latent.source, [11, 12, 13], [11]),
        (~(prompt | answer), [11, 12, 13, 14], [11, 12]),
        ((question | options)[1:], [8, 9], [8, 9]),
    ],
    ids=str,
)
def test_what_each_role_names(role: Role, first: list[int], second: list[int]) -> None:
    assert columns(role, 0) == first
    assert columns(role, 1) == second


def test_segments_partition_the_valid_positions() -> None:
    unrolled = build()
    masks = torch.stack([role.mask(unrolled) for role in (template, image, question, options, lead, latent, answer)])
    assert torch.equal(masks.sum(0) == 1, unrolled.valid)
    several = staged()
    masks = torch.stack([role.mask(several) for role in (prompt, latent, between, answer)])
    assert torch.equal(masks.sum(0) == 1, several.valid)
    assert torch.equal(prompt.mask(unrolled) | latent.mask(unrolled) | answer.mask(unrolled), unrolled.valid)


def test_latent_source_shifted_by_one_is_latent() -> None:
    unrolled = build()
    assert torch.equal(latent.source.mask(unrolled)[:, :-1], latent.mask(unrolled)[:, 1:])
    kept = resolve(latent.source, unrolled, absent="drop"), resolve(latent, unrolled, absent="drop")
    assert torch.equal(kept[0].columns + 1, kept[1].columns)


NAMED_STAGES = st.text(max_size=4).map(latent.stage)
LEAVES = st.one_of(
    st.sampled_from(list(NAMES.values())),
    NAMED_STAGES,
    NAMED_STAGES.map(lambda stage: stage.source),
    NAMED_STAGES.map(lambda stage: stage.end),
)
NUMBERS = st.integers(-9, 9)
BOUNDS = st.none() | NUMBERS
BUILDERS = (operator.or_, operator.and_, operator.sub)


def grown(inner: st.SearchStrategy[Role]) -> st.SearchStrategy[Role]:
    """Every way to make a larger role from smaller ones."""
    return st.one_of(
        st.builds(lambda join, a, b: join(a, b), st.sampled_from(BUILDERS), inner, inner),
        inner.map(lambda role: ~role),
        st.builds(lambda role, i: role[i], inner, NUMBERS),
        st.builds(lambda role, i, j, k: role[i:j:k], inner, BOUNDS, BOUNDS, BOUNDS.filter(lambda k: k != 0)),
    )


ROLES = st.recursive(LEAVES, grown, max_leaves=6)
REAL_ROLES = st.recursive(st.sampled_from(list(NAMES.values())), grown, max_leaves=5)


@given(ROLES)
def test_text_round_trips(role: Role) -> None:
    assert parse(str(role)) == role
    assert len({role, parse(str(role))}) == 1


@given(REAL_ROLES, REAL_ROLES)
def test_roles_obey_set_laws_on_the_valid_positions(a: Role, b: Role) -> None:
    unrolled = build()
    masks = {role: role.mask(unrolled) for role in (a, b)}
    assert ~~a == a
    assert torch.equal((~a).mask(unrolled), unrolled.valid & ~masks[a])
    assert torch.equal((~(a | b)).mask(unrolled), (~a & ~b).mask(unrolled))
    assert torch.equal((a - b).mask(unrolled), (a & ~b).mask(unrolled))
    assert not (masks[a] & ~unrolled.valid).any()


@given(REAL_ROLES, st.integers(0, 3))
def test_padding_moves_a_role_and_does_not_change_it(role: Role, extra: int) -> None:
    plain = build()
    wide = build(tuple("." * extra + row for row in ROWS))
    shifted = torch.where(plain.answer_first >= 0, plain.answer_first + extra, -1)
    wide = replace(wide, n_prompt=plain.n_prompt + extra, answer_first=shifted)
    assert torch.equal(role.mask(wide)[:, extra:], role.mask(plain))


def test_resolve_sorts_by_row_then_column() -> None:
    kept = resolve(answer.first | latent[:2], picked([0, 1]))
    assert kept.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert kept.columns.tolist() == [11, 12, 17, 11, 12, 14]
    assert len(kept) == 6


def picked(rows: list[int]) -> Unrolled:
    """Some rows of the batch, repeats allowed."""
    whole = build()
    by_row = ("input_ids", "segments", "steps", "patches", "grids", "latents", "n_latents", "answer_first", "stages")
    parts = {name: getattr(whole, name)[rows] for name in by_row}
    items = tuple(whole.items[row] for row in rows)
    return replace(whole, items=items, position_ids=whole.position_ids[:, rows], **parts)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (latent[9], r"latent\[9\] is absent in 3 of 3 items: 'a' \(latent\[9\]: latent has 4 here\), 'b'"),
        (latent, r"absent in 1 of 3 items: 'c' \(latent: no latents were emitted\)"),
        (latent.end, r"1 of 3 items: 'c' \(latent.end: no latents"),
        (image.box, r"'c' \(image.box: the item has no boxes\)"),
        (answer.first, r"'c' \(answer.first: no answer text was found \(answer_first is -1\)\)"),
        (answer.source, "1 of 3 items: 'c'"),
        (prompt | latent, r"1 of 3 items: 'c' \(latent: no latents"),
        (prompt & latent, r"3 of 3 items: 'a' \(prompt & latent: nothing is left"),
        (latent | latent[2], r"2 of 3 items: 'b' \(latent\[2\]: latent has 2 here\), 'c'"),
    ],
    ids=str,
)
def test_an_absent_role_names_the_items(role: Role, message: str) -> None:
    with pytest.raises(RoleError, match=message):
        resolve(role, build())


def test_drop_leaves_out_and_reports() -> None:
    kept = resolve(latent[2] | prompt, build(), absent="drop")
    assert kept.dropped == ("b", "c")
    assert set(kept.rows.tolist()) == {0}
    assert resolve(prompt, build(), absent="drop").dropped == ()


def test_what_is_taken_away_may_be_absent() -> None:
    assert resolve(~latent, build()).dropped == ()
    assert len(resolve(prompt - latent, build())) == int(prompt.mask(build()).sum())


def test_long_lists_of_items_are_counted() -> None:
    with pytest.raises(RoleError, match=r"absent in 20 of 20 items(.|\n)* and 12 more"):
        resolve(latent[4], picked([0] * 20))


def test_a_stage_is_an_error_on_a_model_without_stages() -> None:
    with pytest.raises(RoleError, match=r"available stages: none(.|\n)*a model whose latent block has other stages"):
        resolve(latent.stage("target"), build())


context, target, free = (latent.stage(name) for name in STAGES)


@pytest.mark.parametrize(
    ("role", "first", "second"),
    [
        (latent, [11, 12, 13, 18, 19], [11, 12, 17]),
        (between, [14, 15, 16, 17], [13, 14, 15, 16]),
        (answer, [20, 21, 22], [18, 19, 20, 21]),
        (context, [11, 12, 13], [11, 12]),
        (target, [18, 19], [17]),
        (free, [15, 16], [14, 15]),
        (context[-1], [13], [12]),
        (target[0], [18], [17]),
        (target[-1], [19], [17]),
        (target[1], [19], []),
        (context[1:], [12, 13], [12]),
        (free[-1], [16], [15]),
        (context.source, [10, 11, 12], [10, 11]),
        (target.source, [17, 18], [16]),
        (target.source[-1], [18], [16]),
        (context.end, [14], [13]),
        (target.end, [20], [18]),
        (free.end, [17], [16]),
        (latent.end, [20], [18]),
        (latent[3], [18], []),
        (latent[-1], [19], [17]),
        (latent.source, [10, 11, 12, 17, 18], [10, 11, 16]),
        (context | free, [11, 12, 13, 15, 16], [11, 12, 14, 15]),
        (latent - target, [11, 12, 13], [11, 12]),
        (~(prompt | answer | target | between), [11, 12, 13], [11, 12]),
    ],
    ids=str,
)
def test_what_each_role_of_a_stage_names(role: Role, first: list[int], second: list[int]) -> None:
    assert columns(role, 0, staged()) == first
    assert columns(role, 1, staged()) == second
    assert columns(parse(str(role)), 0, staged()) == first


def test_a_missing_stage_says_which_there_are_and_an_absent_one_which_items_lack_it() -> None:
    with pytest.raises(
        RoleError, match=r"the role latent.stage\('ctx'\) .*; available stages: 'context', 'target', 'free'"
    ):
        resolve(latent.stage("ctx")[0], staged())
    with pytest.raises(RoleError, match=r"1 of 3 items: 'c' \(latent.stage\('target'\): this item has no such stage\)"):
        resolve(target, staged())
    with pytest.raises(RoleError, match=r"2 of 3 items: 'b' \(latent.stage\('target'\)\[1\]: .* has 1 here\), 'c'"):
        resolve(target[1], staged())
    with pytest.raises(RoleError, match="free tokens are embedded as any token"):
        resolve(free.source, staged())
    assert resolve(target.end, staged(), absent="drop").dropped == ("c",)


def test_while_a_later_stage_is_still_to_come_no_index_from_the_end_names_the_present_one() -> None:
    whole = staged()
    part = replace(
        whole,
        segments=whole.segments[:, :14],
        steps=whole.steps[:, :14],
        stages=whole.stages[:, :14],
        patches=whole.patches[:, :14],
        input_ids=whole.input_ids[:, :14],
        position_ids=whole.position_ids[..., :14],
        n_staged=torch.tensor([[3, 2, 2], [2, 1, 2], [0, 0, 0]]),
    )
    assert columns(latent[-1], 0, part) == [] and columns(latent.end, 0, part) == []
    assert columns(context[-1], 0, part) == [13] and columns(target[-1], 0, part) == []
    assert columns(free[-1], 0, part) == [] and columns(context.end, 1, part) == [13]
    # One more latent of the context is sure to come: the last that is here is not the stage's last.
    assert columns(context[-1], 0, replace(part, n_staged=part.n_staged + 1)) == []


@pytest.mark.parametrize(("role", "seen"), [(latent, [11, 12]), (latent[1], [12]), (latent[-1], []), (answer, [])])
def test_roles_work_while_only_some_columns_are_there(role: Role, seen: list[int]) -> None:
    whole = build()
    part = replace(
        whole,
        segments=whole.segments[:, :13],
        steps=whole.steps[:, :13],
        patches=whole.patches[:, :13],
        stages=whole.stages[:, :13],
        input_ids=whole.input_ids[:, :13],
        position_ids=whole.position_ids[..., :13],
    )
    assert columns(role, 0, part) == seen
    assert columns(latent.source, 0, part) == [10, 11]
    assert columns(answer.first, 0, part) == []


def test_misuse_in_python_is_loud() -> None:
    with pytest.raises(RoleError, match="`and`, `or` or `not` between roles"):
        bool(latent and answer)
    with pytest.raises(TypeError):
        list(latent)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        latent | "answer"  # type: ignore[operator]
    with pytest.raises(RoleError, match="a step other than 0"):
        latent[::0]


@pytest.mark.usefixtures("unchecked")
def test_values_of_another_type_are_named() -> None:
    with pytest.raises(RoleError, match="was indexed with 'a'"):
        latent["a"]  # type: ignore[index]
    with pytest.raises(RoleError, match="positions were given as 'latent'"):
        resolve("latent", build())  # type: ignore[arg-type]
    with pytest.raises(RoleError, match="is not a role"):
        parse(3)  # type: ignore[arg-type]


def test_nothing_lies_on_padding_where_a_row_ends_early() -> None:
    cut_short = build(("..TIIIIQQOLZZZZ.......", "TTTIIIIQQOL..AAA......", "...........ZZA........"), (4, 0, 2))
    cut_short = replace(cut_short, answer_first=torch.tensor([17, 13, 13]))
    assert columns(latent.end, 0, cut_short) == []
    assert columns(answer.first, 0, cut_short) == []
    assert columns(answer.source, 1, cut_short) == []
    assert columns(latent.source, 2, cut_short) == [11]
    with pytest.raises(
        RoleError, match=r"'a' \(latent.end: nothing follows the 4 latents yet\), 'b' \(latent.end: no lat"
    ):
        resolve(latent.end, cut_short)
    with pytest.raises(RoleError, match=r"'a' \(answer.first: column 17 is not here\)"):
        resolve(answer.first, cut_short)
    with pytest.raises(RoleError, match="absent='skip'"):
        resolve(latent, cut_short, absent="skip")


class Words:
    """A tokenizer that calls token 7 ``<7>``."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(f"<{token}>" for token in token_ids)


def test_describe_has_a_line_for_each_position() -> None:
    frame = describe(build(), 0, Words())
    assert frame["column"].tolist() == list(range(2, 19))
    image_line, latent_line = frame[frame["column"] == 5].iloc[0], frame[frame["column"] == 13].iloc[0]
    assert (image_line["role"], image_line["patch_row"], image_line["patch_column"]) == ("image", 1, 0)
    assert (latent_line["role"], latent_line["step"], latent_line["token"]) == ("latent", 2, "<13>")
    assert (latent_line["t"], latent_line["h"], latent_line["w"]) == (13, 66 + 13, 132 + 13)
    assert set(describe(build(), -1)["token"]) == {None}
    assert set(describe(build(), 0)["stage"]) == {""}
    several = describe(staged(), 0).set_index("column")
    assert several.loc[[13, 14, 15, 18], "stage"].tolist() == ["context", "", "free", "target"]
    assert several.loc[[13, 14, 15, 18], "role"].tolist() == ["latent", "between", "between", "latent"]
    with pytest.raises(RoleError, match="row 3 of a batch of 3"):
        describe(build(), 3)
