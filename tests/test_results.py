"""Results come back from disk exactly as they went, or with an error that says what is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prismlens.errors import ResultsError
from prismlens.results import Results, environment, environment_manifest, results

FLOATS = [0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]


def rows() -> pd.DataFrame:
    """One column of every kind that results meet, with every awkward value."""
    n = len(FLOATS)
    return pd.DataFrame(
        {
            "id": [f"item-{i}" for i in range(n)],
            "text": pd.Series(["a\nb", 'quote"', "", None, "\u2028", "é", "null", "NaN"], dtype="str"),
            "float": FLOATS,
            "float32": np.array([0.1, 1 / 3, 1e-45, 3.4e38, math.nan, math.inf, 0, 1], dtype=np.float32),
            "int": [2**53 + 1, -(2**63), 2**63 - 1, *range(n - 3)],
            "small": np.arange(n, dtype=np.int8),
            "maybe_int": pd.array([None, 2**53 + 1, *range(n - 2)], dtype="Int64"),
            "bool": [True, False] * (n // 2),
            "maybe": pd.Series([True, None, False, None, 1, 1.0, "1", math.nan], dtype=object),
            "nested": pd.Series([[1, [math.inf]], {"a": None}, [], {}, None, [True], {"b": [0.1]}, "x"], dtype=object),
            "empty": pd.Series([None] * n, dtype=object),
        }
    )


def saved(tmp_path: Path) -> Path:
    return Results(rows(), {"seed": 1, "items": ["a", "b"]}).save(tmp_path / "out")


def test_every_column_comes_back_with_its_type_and_exact_values(tmp_path: Path) -> None:
    loaded = Results.load(saved(tmp_path))
    pd.testing.assert_frame_equal(loaded.frame(), rows(), check_exact=True)
    assert np.copysign(1, loaded.rows["float"].to_numpy()[2]) == -1
    for name in ("maybe", "nested", "empty"):
        for before, after in zip(rows()[name], loaded.rows[name], strict=True):
            assert type(before) is type(after)
            assert repr(before) == repr(after)
    assert loaded.manifest == {"seed": 1, "items": ["a", "b"]}


def test_random_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, 2000, dtype=np.uint64)
    values = bits.view(np.float64)
    values = values[np.isfinite(values)]
    loaded = Results.load(Results(pd.DataFrame({"x": values}), {}).save(tmp_path / "out"))
    assert loaded.rows["x"].to_numpy().tobytes() == values.tobytes()


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "1"), Results.load(tmp_path / "1" / "out").save(tmp_path / "2" / "out")
    for name in ("rows.jsonl", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_files_are_strict_json_with_one_line_per_row(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (saved(tmp_path) / "rows.jsonl").read_bytes().splitlines()
    assert [json.loads(line, parse_constant=refuse)["id"] for line in lines] == list(rows()["id"])


@pytest.mark.parametrize("columns", [["a"], []])
def test_no_rows_are_results_too(tmp_path: Path, columns: list[str]) -> None:
    empty = pd.DataFrame({name: pd.Series([], dtype="int64") for name in columns}, index=range(0))
    pd.testing.assert_frame_equal(Results.load(Results(empty, {}).save(tmp_path / "out")).frame(), empty)


def test_results_do_not_change_with_what_they_were_made_of() -> None:
    given, manifest = rows(), {"seeds": [1]}
    made = Results(given, manifest)
    given.loc[0, "id"] = "changed"
    manifest["seeds"].append(2)
    copy = made.frame()
    copy.loc[0, "id"] = "changed"
    assert made.rows["id"].tolist()[0] == "item-0"
    assert made.manifest == {"seeds": [1]}


def test_filtered_rows_are_renumbered_and_tuples_become_lists(tmp_path: Path) -> None:
    frame = pd.DataFrame({"box": [(1, 2), (3, np.float64(4))], "keep": [False, True]})
    made = Results(frame.loc[frame["keep"]], {"donors": ("a",)})
    assert list(made.rows.index) == [0]
    assert list(made.rows["box"]) == [[3, 4.0]]
    assert made.manifest == {"donors": ["a"]}
    pd.testing.assert_frame_equal(Results.load(made.save(tmp_path / "out")).frame(), made.frame())


def test_saving_never_touches_a_folder_that_holds_something(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ResultsError, match=r"already holds saved results[\s\S]*new or an empty folder"):
        Results(pd.DataFrame({"a": [1]}), {}).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").write_text("mine")
    with pytest.raises(ResultsError, match="already holds other files"):
        Results(rows(), {}).save(tmp_path / "other")
    with pytest.raises(ResultsError, match="already holds a file's content"):
        Results(rows(), {}).save(tmp_path / "other" / "note")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(Results.load(saved(tmp_path)).rows) == len(FLOATS)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(ResultsError, match=r"could not be written: .*No space left"):
        saved(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_both_files_reach_the_disk_before_the_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda *args, n=name, f=function: (calls.append(n), f(*args))[1])
    saved(tmp_path)
    assert calls == ["fsync", "fsync", "fsync", "replace", "fsync"]  # rows, manifest, their folder; then its parent


def test_a_rival_that_saves_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = results.check_free

    def rival_comes_after_the_check(target: Path) -> None:
        real(target)
        target.mkdir(exist_ok=True)
        (target / "rival").write_text("first")

    monkeypatch.setattr(results, "check_free", rival_comes_after_the_check)
    with pytest.raises(ResultsError, match=r"could not be written: .*not empty"):
        saved(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "rival"]


def test_rows_cut_short_or_changed_are_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path) / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultsError, match=rf"cut short: {len(whole) // 2} of {len(whole)} bytes"):
        Results.load(path.parent)
    path.write_bytes(whole.replace(b"item-0", b"item-9"))
    with pytest.raises(ResultsError, match="changed after it was saved"):
        Results.load(path.parent)
    path.unlink()
    with pytest.raises(ResultsError, match=r"rows\.jsonl cannot be read: No such file"):
        Results.load(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"version 2[\s\S]*needed: version 1"),
        ({"format": "other"}, "is not a manifest of saved results"),
        ({"columns": None}, "lacks columns"),
        ({"rows": {}}, r"lacks rows\.count, rows\.bytes, rows\.sha256"),
        ({"columns": {"id": "str"}}, "the rows do not have these"),
    ],
)
def test_a_strange_manifest_is_an_error(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = saved(tmp_path) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultsError, match=message):
        Results.load(path.parent)


def test_a_wrong_row_count_or_a_cut_manifest_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path) / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace(f'"count": {len(FLOATS)}', '"count": 3'))
    with pytest.raises(ResultsError, match=f"says 3 rows and there are {len(FLOATS)}"):
        Results.load(path.parent)
    path.write_text(text[:-20])
    with pytest.raises(ResultsError, match=r"is not JSON[\s\S]*cut short"):
        Results.load(path.parent)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), "column 'when' has the type datetime64"),
        (pd.DataFrame({"c": pd.Categorical(["a"])}), "column 'c' has the type category"),
        (pd.DataFrame({"o": [{1, 2}]}), "column 'o' holds .* of the type set"),
        (pd.DataFrame({"o": [{"$float": "inf"}]}), r"column 'o' holds .*\$float"),
        (pd.DataFrame({1: [0]}), r"the columns are \[1\]"),
        (pd.DataFrame({"$float": [0]}), r"none of them '\$float'"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "different names"),
        (pd.DataFrame({"a": [1], "b": [2]}).set_index("a"), r"the index \['a'\][\s\S]*reset_index"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_once(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        Results(frame, {})


def test_a_manifest_that_is_not_json_is_refused() -> None:
    with pytest.raises(ResultsError, match=r"the manifest, at 'model' holds .* of the type object"):
        Results(pd.DataFrame(), {"model": object()})
    with pytest.raises(ResultsError, match="NaN or infinity"):
        Results(pd.DataFrame(), {"lr": math.nan})


def test_environment_names_versions_and_records_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "RECORDED", ("numpy", "no-such-library"))
    found = environment_manifest()
    assert set(found) == {"python", "platform", "numpy", "no-such-library"}
    assert found["numpy"] == np.__version__
    assert found["no-such-library"] is None
    json.dumps(found, allow_nan=False)
