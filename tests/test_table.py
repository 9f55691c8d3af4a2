"""The table as text: all of it fits, all of it is there, and nothing in a name is taken for markup."""

import re

import pandas as pd
import pytest

from prismlens.corruption import COLUMNS, default_conditions
from prismlens.table import WIDTH, render

LONGEST = max(default_conditions(0), key=len)
WIDEST = {
    "part": "vector", "removes": True, "n": 1234, "left_out": 0, "accuracy": 0.123, "low": 0.012, "high": 0.234,
    "change": -0.777, "change_low": -0.888, "change_high": -0.666, "p_holm": 0.0001, "changed": 1234,
    "follow": 0.5, "follow_low": 0.25, "follow_high": 0.75,
}  # fmt: skip
CELLS = ("0.123 [0.012, 0.234]", "-0.777 [-0.888, -0.666]", "< .001", "1234 of 1234", "0.50 [0.25, 0.75]")


def frame(*lines: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame(list(lines), columns=COLUMNS).set_index("condition")


def line(name: str, **values: object) -> dict[str, object]:
    return {"condition": name, **WIDEST, **values}


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_the_widest_line_fits_and_nothing_is_cut_off():
    names = list(default_conditions(0))
    text = render(frame(*map(line, names)), "a title", {})
    assert max(map(len, text.splitlines())) <= WIDTH and "…" not in text
    for name in names:
        assert line_of(text, name).split("  ")[0].strip() == name
    assert [cell for cell in CELLS if cell in line_of(text, LONGEST)] == list(CELLS)
    headings = ("condition", "accuracy [95 %]", "change [95 %]", "p (Holm)", "changed", "follow donor")
    assert all(heading in line_of(text, "condition") for heading in headings)


@pytest.mark.parametrize("name", ["a name of my own that goes on and on, and says all that there is to say", "x" * 90])
def test_a_long_name_is_folded_and_costs_no_number(name: str):
    text = render(frame(line(name), line("short")), "a title", {})
    assert max(map(len, text.splitlines())) <= WIDTH and "…" not in text
    assert all(text.count(cell) == 2 for cell in CELLS)
    for cell in CELLS:
        text = text.replace(cell, "")
    assert re.sub(r"\s", "", name) in re.sub(r"\s", "", text)


def test_markup_and_emoji_codes_are_shown_as_they_are():
    names = ["[red]zero[/red]", "[bold]", ":smile:"]
    text = render(frame(*map(line, names)), "[blue]model[/blue] :smile:", {"[red]": ["[i]x[/i]", ":cat:"]})
    for piece in (*names, "[blue]model[/blue] :smile:", "[red]: 2 items left out", "[i]x[/i], :cat:"):
        assert piece in text
    assert "\x1b" not in text


def test_what_is_missing_is_blank():
    clean = {"condition": "clean", "part": "clean", "n": 12, "accuracy": 0.5, "low": 0.25, "high": 0.75}
    nobody = {"condition": "nobody", "part": "vector", "n": 0, "changed": 0}
    text = render(frame(clean, nobody, line("zero")), "a title", {})
    assert line_of(text, "clean").split() == ["clean", "0.500", "[0.250,", "0.750]"]
    assert line_of(text, "nobody").split() == ["nobody", "0", "of", "0"]
    assert "nan" not in text.lower() and "none" not in text.lower()


@pytest.mark.parametrize(
    ("p", "shown"),
    [(1.0, "1.000"), (0.25, ".250"), (0.0994, ".099"), (0.001, ".001"), (0.00099, "< .001"), (0.0, "< .001")],
)
def test_a_p_value_is_never_a_bare_zero(p: float, shown: str):
    cells = line_of(render(frame(line("zero", p_holm=p)), "", {}), "zero")
    assert re.search(rf"0\.666\]\s+{re.escape(shown)}\s+1234 of", cells)


def test_items_that_were_left_out_are_counted_and_named():
    left_out = {"swap": ["one"], "zero": [f"item-{i}" for i in range(7)]}
    text = render(frame(line("swap"), line("zero")), "a title", left_out)
    assert "swap: 1 items left out, without donor or position: one\n" in text
    assert "zero: 7 items left out, without donor or position: item-0, item-1, item-2, item-3, item-4, ...\n" in text
    assert "item-5" not in text and "left out" not in render(frame(line("swap")), "a title", {})


def test_long_ids_are_wrapped_and_not_cut():
    ids = [f"a-very-long-id-of-an-item-in-a-folder-{i:05d}" for i in range(5)]
    text = render(frame(line("swap")), "a title", {"swap": ids})
    assert max(map(len, text.splitlines())) <= WIDTH and all(one in text.replace("\n", "") for one in ids)


def test_the_title_stands_above_and_lines_end_without_blanks():
    lines = render(frame(line("zero")), "tiny/lvr: 12 items", {}).split("\n")
    assert lines[0] == "tiny/lvr: 12 items" and lines[-1] == "" and lines[-2] != ""
    assert all(line == line.rstrip() for line in lines)
