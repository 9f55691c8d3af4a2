"""Several models side by side: numbers equal those of the reports, what cannot be compared is refused or named."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import prismlens as pl
from prismlens.compare import Comparison, compare, sources
from prismlens.compare.rows import COLUMNS
from prismlens.errors import PrismlensError, ResultsError, SettingError
from prismlens.plots.models import Axis, models_figure
from prismlens.results import Results

N = 32
SEED = "seed-0-layers-none"
MODELS = {"neck": "tiny/bottleneck", "plain": "tiny/sft"}


@pytest.fixture(scope="module")
def items() -> list[pl.Item]:
    """A few scenes."""
    return pl.load_items("shapes", n=N)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reports of the real comparison are kept."""
    return tmp_path_factory.mktemp("reports") / "kept"


@pytest.fixture(scope="module")
def real(items: list[pl.Item], kept: Path) -> Comparison:
    """A model with latents and one without."""
    return compare(MODELS, items, reports=kept, layers=[])


@pytest.fixture(scope="module")
def reports(real: Comparison, kept: Path) -> dict[str, pl.Report]:
    """The reports that the comparison kept."""
    return {name: pl.Report.load(kept / name / SEED) for name in ("neck",)}


def made(values: dict[str, dict[str, np.ndarray]], n_seeds: int = 1, groups: int = 30, **manifest) -> Comparison:
    """A comparison of made-up values: model -> measure -> values of shape (seeds, items)."""
    n = next(iter(next(iter(values.values())).values())).shape[-1]
    rows = [
        {
            "model": name,
            "seed": seed,
            "measure": measure,
            "item": f"i{i}",
            "group": f"g{i % groups}",
            "value": table[seed, i],
        }
        for name, measures in values.items()
        for measure, table in measures.items()
        for seed in range(n_seeds)
        for i in range(n)
    ]
    about = {
        "model": "m", "items_without_latents": [], "left_out": {}, "missing": {},
        "verdict": {part: {"word": "undecided", "reason": "made up"} for part in ("vector", "slot")},
    }  # fmt: skip
    whole = {
        "models": {name: [about] * n_seeds for name in values}, "seeds": list(range(n_seeds)),
        "items": [f"i{i}" for i in range(n)], "margin": 0.05, "majority": 0.25, "reliance": "zero", "failed": {},
    }  # fmt: skip
    return Comparison(Results(pd.DataFrame(rows, columns=COLUMNS), {"comparison": {**whole, **manifest}}))


def spread(n_models: int = 6, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Models whose accuracy falls as their cosine rises, and whose gap is unrelated."""
    rng = np.random.default_rng(seed)
    return {
        f"model {k}": {
            "accuracy": (rng.random((1, 120)) < 0.9 - 0.1 * k).astype(float),
            "cosine_forced": 0.1 * k + 0.02 * rng.normal(size=(1, 120)),
            "gap_paper": 0.1 * (k % 3) + 0.1 * rng.normal(size=(1, 120)),
            "change: zero": -0.1 * (k % 2) + 0.1 * rng.normal(size=(1, 120)),
        }
        for k in range(n_models)
    }


def test_accuracy_and_changes_are_those_of_the_reports_with_their_intervals(real: Comparison, reports) -> None:
    frame = real.frame()
    for name, report in reports.items():
        own = report.frame()
        assert frame.loc[name, ["accuracy", "accuracy_low", "accuracy_high"]].tolist() == pytest.approx(
            own.loc["clean", ["accuracy", "low", "high"]].tolist()
        )
        for condition in ("zero", "noise 3 std", "swap, other answer", "slot: zero keys and values"):
            ours = [f"change: {condition}{end}" for end in ("", "_low", "_high")]
            theirs = own.loc[condition, ["change", "change_low", "change_high"]].tolist()
            assert frame.loc[name, ours].tolist() == pytest.approx(theirs), (name, condition)
        assert (frame.loc[name, "verdict_vector"], frame.loc[name, "verdict_slot"]) == (
            report.verdict.vector.word, report.verdict.slot.word,
        )  # fmt: skip
    assert frame.loc["neck", "change: zero"] < -0.3


def test_cosines_and_gaps_are_those_of_the_reports(real: Comparison, reports) -> None:
    frame = real.frame()
    for name, report in reports.items():
        near, gap = report.alignment.frame(), report.decodability.gap().set_index("reading")
        assert frame.loc[name, "cosine_forced"] == pytest.approx(near.loc["teacher-forced", "cosine"])
        assert frame.loc[name, "cosine_free"] == pytest.approx(near.loc["free", "cosine"])
        assert frame.loc[name, "gap_paper"] == pytest.approx(gap.loc["paper", "gap"])
        assert frame.loc[name, "gap_best"] == pytest.approx(gap.loc["best", "gap"])


def test_a_model_without_latents_has_its_accuracy_and_nothing_else(real: Comparison, items) -> None:
    line = real.frame().loc["plain"]
    right = [
        choice == item.answer for choice, item in zip(pl.load("tiny/sft").generate(items).choice, items, strict=True)
    ]
    assert line.accuracy == pytest.approx(np.mean(right))
    assert line.verdict_vector == "no latents"
    numbers = [name for name in line.index if name.startswith(("cosine", "gap", "change"))]
    assert len(numbers) > 20 and line[numbers].isna().all()
    assert "plain: decodability: not measured: the model has no latents" in real.table()


def test_too_few_models_have_tables_and_a_stated_absence_of_correlations(real: Comparison, reports, items) -> None:
    assert real.correlations().r.isna().all()
    assert "1 of 2 models have both measures: no correlation (at least 3 are needed)" in real.table()
    one = compare({"only": reports["neck"]})
    assert len(one.frame()) == 1 and "no correlations: 1 of 1 models" in one.table()
    assert one.plot().axes[0].get_title(loc="left").startswith("1 of 1 models")


def test_what_is_done_is_not_measured_again(real: Comparison, items, kept: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "prism", lambda *_, **__: pytest.fail("measured again"))
    again = compare({"neck": "tiny/bottleneck"}, items, reports=kept, layers=[])
    assert again.frame().loc["neck", "accuracy"] == real.frame().loc["neck", "accuracy"]
    with pytest.raises(ResultsError, match=r"neck: .* holds a report with other items"):
        compare({"neck": "tiny/bottleneck"}, items[:-1], reports=kept, layers=[])
    with pytest.raises(ResultsError, match="other weights"):
        compare({"neck": "tiny/lvr"}, items, reports=kept, layers=[])


def test_saved_folders_are_read_and_a_comparison_comes_back_whole(real: Comparison, kept: Path, tmp_path: Path) -> None:
    same = compare({"neck": str(kept / "neck" / SEED), "plain": kept / "plain" / SEED})
    pd.testing.assert_frame_equal(same.frame(), real.frame())
    real.save(tmp_path / "c")
    back = Comparison.load(tmp_path / "c")
    pd.testing.assert_frame_equal(back.frame(), real.frame())
    assert back.table() == real.table() and back.manifest == real.manifest
    with pytest.raises(ResultsError, match="saved comparison"):
        Comparison.load(kept / "neck" / SEED)


def test_reports_of_other_items_are_refused_with_the_difference(reports, items) -> None:
    whole = reports["neck"]

    def changed(edit) -> pl.Report:
        results = whole.corruption.results
        return dataclasses.replace(
            whole,
            corruption=dataclasses.replace(
                whole.corruption, results=Results(edit(results.rows.copy()), results.manifest)
            ),
        )

    first = items[0].id
    fewer = changed(lambda rows: rows[rows["item"] != first])
    with pytest.raises(
        ResultsError, match=rf"\({N} items\) and 'b' \({N - 1}\) are of different items: only 'a' has 1 \({first}\)"
    ):
        compare({"a": whole, "b": fewer})
    other = changed(lambda rows: rows.assign(answer=rows.answer.where(rows["item"] != first, "Z")))
    with pytest.raises(ResultsError, match="other answers or groups: 1"):
        compare({"a": whole, "b": other})
    loose = dataclasses.replace(whole, corruption=dataclasses.replace(whole.corruption, margin=0.1))
    with pytest.raises(ResultsError, match=r"margin of 0.1, 'a' one of 0.05"):
        compare({"a": whole, "b": loose})


def test_a_model_that_fails_stops_with_its_name_or_is_named_in_the_table(reports) -> None:
    broken = {"good": reports["neck"], "bad <b>": "tiny/none-such"}
    with pytest.raises(PrismlensError, match=r"^bad <b>: "):
        compare(broken)
    found = compare(broken, on_bad="skip")
    assert list(found.failed) == ["bad <b>"] and list(found.frame().index) == ["good"]
    assert "bad <b>: left out of the comparison" in found.table()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: compare({}), "name -> model"),
        (lambda r: compare({"a": "tiny/lvr"}), "a: no items"),
        (lambda r: compare({"a": r}, seeds=[]), "at least one seed"),
        (lambda r: compare({"a": r}, seeds=[1, 1]), "each once"),
        (lambda r: compare({"a": r}, seeds=[0, 1]), "a: 1 reports and 2 seeds"),
        (lambda r: compare({"a": r}, on_bad="ignore"), "'raise', 'skip'"),
        (lambda r: compare({"a": r}, reliance="none"), "a condition: 'no-op'"),
        (lambda r: compare({"a/b": r, "a-b": r}, reports="x"), "names that differ more"),
        (lambda r: compare({"a": r}).values("wrong"), "'accuracy', 'cosine_forced'"),
        (lambda r: compare({"a": r}).correlations(second=["b"]), r"models of \['a'\]"),
    ],
)
def test_bad_input_is_named(reports, call, words: str, unchecked: None) -> None:
    with pytest.raises(SettingError, match=words):
        call(reports["neck"])


def test_correlations_find_what_was_put_in() -> None:
    found = made(spread()).correlations().set_index(["x", "y", "method"])
    line = found.loc["cosine_forced", "accuracy", "pearson"]
    assert line.r < -0.9 and line.low < line.r < line.high < 0 and line.p < 0.02 and line.why == ""
    assert line.loo_low <= line.r <= line.loo_high and not line.as_well
    assert found.loc["gap_paper", "accuracy", "pearson"].p > 0.1
    assert found.loc["cosine_free", "accuracy", "pearson"].why.startswith("0 of 6 models")
    named = made(spread()).correlations([("cosine_forced", "accuracy")], second=["model 0"]).iloc[0]
    assert named.second == ["model 0"]


def test_seeds_that_differ_widen_the_intervals_and_verdicts_are_counted() -> None:
    rng = np.random.default_rng(0)
    steady = {"m": {"accuracy": (rng.random((1, 120)) < 0.5).astype(float).repeat(3, axis=0)}}
    shaken = {"m": {"accuracy": np.clip(steady["m"]["accuracy"] + np.array([[-0.4], [0.0], [0.4]]), 0, 1)}}
    widths = [made(v, 3).frame().eval("accuracy_high - accuracy_low").iloc[0] for v in (steady, shaken)]
    assert widths[1] > 1.2 * widths[0]
    about = made(steady, 3)
    for about_one, word in zip(about.manifest["models"]["m"], ("bypassed", "partly", "bypassed"), strict=True):
        about_one["verdict"]["vector"]["word"] = word
    assert about.frame().loc["m", "verdict_vector"] == "bypassed (2), partly (1)"


def test_the_page_opens_offline_and_escapes_names(tmp_path: Path) -> None:
    values = spread(5)
    values["<script>alert(1)</script>"] = values.pop("model 1")
    comparison = made(values, failed={"<img src=x>": "<b>why</b>"})
    text = comparison.to_html(tmp_path / "page.html").read_text()
    assert "<script" not in text and "<img src=x" not in text and "<b>why" not in text
    assert "&lt;script&gt;" in text and "&lt;b&gt;why" in text
    tags = re.findall(r"<[a-z][^>]*>", text)
    assert not [tag for tag in tags if "href" in tag or ("src=" in tag and 'src="data:' not in tag)]
    pictures = [base64.b64decode(data) for data in re.findall(r"svg\+xml;base64,([^\"]+)", text)]
    assert len(pictures) == 2 and all(picture.startswith(b"<svg") for picture in pictures)
    made(spread(5)).to_html(tmp_path / "page.html")  # over the older one
    assert "&lt;script&gt;" not in (tmp_path / "page.html").read_text()


def test_names_beside_points_cover_neither_each_other_nor_a_point() -> None:
    rng = np.random.default_rng(1)
    x, y = 0.5 + 0.02 * rng.normal(size=12), 0.7 + 0.02 * rng.normal(size=12)
    axes = [Axis(name, v, v - 0.01, v + 0.02) for name, v in (("x", x), ("y $z_", y))]
    names = [f"tiny/model-{k} $x^{k}" for k in range(12)]
    figure = models_figure(names, *axes)
    (plane,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in plane.texts]
    assert [text.get_text() for text in plane.texts] == names
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)
    points = plane.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert len(plane.containers) == 1 and plane.containers[0].has_xerr and plane.containers[0].has_yerr


def test_a_picture_of_nothing_says_so() -> None:
    with pytest.raises(SettingError, match="no model has both"):
        made({"m": {"accuracy": np.ones((1, 60))}}).plot()
