"""A report keeps all three measurements: what they say is theirs, what is missing is said, and the folder is checked."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import prismlens as pl
from prismlens.alignment import Alignment
from prismlens.errors import ItemError, ResultsError
from prismlens.report import Report
from prismlens.trace import PrismModel
from tests.report_cases import small_items, small_model, small_report


@pytest.fixture
def model() -> PrismModel:
    return small_model()


@pytest.fixture
def items() -> tuple[pl.Item, ...]:
    return small_items()


@pytest.fixture
def report() -> Report:
    return small_report()


def tables(near: Alignment) -> dict[str, pd.DataFrame]:
    return {name: value for name, value in vars(near).items() if isinstance(value, pd.DataFrame)}


def test_every_part_is_what_its_own_function_measures_under_the_one_seed(
    report: Report, model: PrismModel, items: tuple[pl.Item, ...]
):
    assert report.alignment is not None and report.decodability is not None
    alone = pl.alignment(model, [item for item in items if item.boxes], seed=2, on_missing="drop")
    pd.testing.assert_frame_equal(report.alignment.frame(), alone.frame())
    assert report.corruption.seed == report.alignment.seed == report.decodability.seed == 2
    about = report.manifest
    assert about["corruption_test"]["seed"] == about["report"]["alignment"]["seed"] == 2
    assert about["report"]["decodability"]["seed"] == 2 and about["report"]["missing"] == {}
    assert about["weights"] == about["report"]["decodability"]["weights"]


def test_the_text_has_all_three_parts_and_names_what_was_left_out(report: Report, items: tuple[pl.Item, ...]):
    text = report.table().replace("\n", " ")
    ids = f"(2): {items[3].id}, {items[8].id}"
    assert f"alignment: left out, without a box {ids}" in text
    assert f"decodability: left out, image.box: the item has no boxes {ids}" in text
    assert "Alignment, free (30 items): cosine" in text and "Alignment, teacher-forced" in text
    assert "paper reading" in text and "best reading" in text and "swap, other answer" in text
    assert set(report.left_out["alignment"]) == set(report.left_out["decodability"]) == {items[3].id, items[8].id}


def test_what_is_read_back_is_what_was_saved(report: Report, tmp_path: Path):
    loaded = Report.load(report.save(tmp_path / "out"))
    assert loaded.table() == report.table() and str(loaded.verdict) == str(report.verdict)
    assert loaded.manifest == json.loads(json.dumps(report.manifest))
    assert loaded.alignment is not None and report.alignment is not None
    for name, table in tables(report.alignment).items():
        pd.testing.assert_frame_equal(tables(loaded.alignment)[name], table.reset_index(drop=True))
    assert loaded.alignment.left_out == report.alignment.left_out
    again = Report.load(loaded.save(tmp_path / "again"))
    assert again.table() == report.table() and again.manifest == loaded.manifest
    with pytest.raises(ResultsError, match="already holds saved results"):
        report.save(tmp_path / "out")


def test_a_saved_report_is_also_a_saved_corruption_test_and_the_other_way_round(report: Report, tmp_path: Path):
    pd.testing.assert_frame_equal(pl.CorruptionTest.load(report.save(tmp_path / "a")).frame(), report.frame())
    alone = Report.load(report.corruption.save(tmp_path / "b"))
    assert alone.alignment is alone.decodability is None
    assert set(alone.missing) == {"alignment", "decodability"}
    assert "alignment: not measured: the folder was saved without it" in alone.table()


@pytest.mark.parametrize("name", ["rows.jsonl", "alignment/rows/rows.jsonl", "alignment/rows/manifest.json",
                                  "decodability/rows.jsonl", "decodability/manifest.json", "manifest.json"])  # fmt: skip
def test_a_part_that_was_cut_short_or_is_gone_is_refused(report: Report, tmp_path: Path, name: str):
    path = report.save(tmp_path / "out") / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultsError, match="cut short"):
        Report.load(tmp_path / "out")
    path.unlink()
    with pytest.raises(ResultsError, match="cannot be read"):
        Report.load(tmp_path / "out")


def test_a_part_of_another_report_is_refused(report: Report, tmp_path: Path):
    first, second = report.save(tmp_path / "a"), report.save(tmp_path / "b")
    path = second / "decodability" / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 2', '"seed": 3'))
    path.replace(first / "decodability" / "manifest.json")
    with pytest.raises(ResultsError, match="comes from another report"):
        Report.load(first)


def test_a_write_that_fails_leaves_nothing(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ResultsError, match="No space left"):
        report.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_the_items_cannot_serve_is_said_in_words_and_not_measured(model: PrismModel):
    few = [replace(item, boxes=()) for item in pl.load_items("shapes", n=6)]
    report = pl.prism(model, few)
    assert report.alignment is None and report.decodability is None
    assert set(report.manifest["report"]["missing"]) == {"alignment", "decodability"}
    text = report.table().replace("\n", " ")
    assert "alignment: not measured: none of 6 items has both a box" in text
    assert "alignment: left out, without a box (6)" in text
    assert f"decodability: not measured: {report.missing['decodability']}" in text
    with pytest.raises(ItemError, match="have no box"):
        pl.prism(model, [*pl.load_items("shapes", n=20, seed=9), *few], on_missing="raise")
