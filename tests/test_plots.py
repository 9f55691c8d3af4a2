"""Pictures show the numbers of the tables, from the object and from its folder, and say what they lack."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import prismlens.plots as plots
from prismlens.errors import ResultsError, SettingError
from prismlens.experiment import CLEAN
from prismlens.patching import PatchingSweep
from prismlens.plots.alignment_floors import SHOWN as FLOORS
from prismlens.report import Report
from prismlens.results import Results
from tests.report_cases import small_report


@pytest.fixture
def report() -> Report:
    return small_report()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_report().save(tmp_path_factory.mktemp("plots") / "out")


def drawn(panel) -> np.ndarray:
    """x and y of every point with an interval."""
    return np.concatenate([bars.lines[0].get_xydata() for bars in panel.containers])


def test_the_profile_has_every_condition_at_its_accuracy_and_change(report: Report):
    left, right = plots.corruption_profile(report.corruption).axes
    frame = report.frame().drop(CLEAN).iloc[::-1]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == list(frame.index)
    for panel, column in ((left, "accuracy"), (right, "change")):
        found = {names[round(y)]: x for x, y in drawn(panel)}
        assert found == pytest.approx(dict(frame[column]))
    segments = [segment for bars in left.containers for segment in bars.lines[2][0].get_segments()]
    for end, column in enumerate(("low", "high")):
        reach = {names[round(float(one[0, 1]))]: one[end, 0] for one in segments}
        assert reach == pytest.approx(dict(frame[column]))


def test_a_map_shows_its_accuracies_and_begins_at_the_majority(report: Report):
    map_ = report.decodability
    assert map_ is not None
    panel = plots.decodability_map(map_).axes[0]
    frame, image = map_.frame(), panel.images[0]
    roles = [label.get_text() for label in panel.get_yticklabels()]
    expected = frame.pivot(index="role", columns="depth", values="accuracy").loc[roles]
    assert np.asarray(image.get_array()) == pytest.approx(expected.to_numpy())
    assert image.get_clim() == pytest.approx((frame.majority.iloc[0], 1.0))
    with pytest.raises(SettingError, match="column='p'"):
        plots.decodability_map(map_, column="p")


def test_the_gaps_and_the_floors_are_those_of_the_tables(report: Report):
    assert report.decodability is not None and report.alignment is not None
    gaps = report.decodability.gap()
    assert sorted(drawn(plots.gap_profile(report.decodability).axes[0])[:, 1]) == pytest.approx(sorted(gaps.gap))
    near = report.alignment.frame(by_step=True)
    panels = plots.alignment_floors(report.alignment).axes
    for panel, mode in zip(panels, ("free", "teacher-forced"), strict=True):
        own = near.loc[mode]
        values = np.concatenate([own[name] for name in FLOORS if name in own])
        assert sorted(drawn(panel)[:, 1]) == pytest.approx(sorted(values[~np.isnan(values)]))


def test_the_geometry_shows_targets_beside_latents_and_says_when_it_is_not_there(report: Report):
    near = report.alignment
    assert near is not None
    panels = plots.latent_geometry(near).axes
    assert sorted(drawn(panels[0])[:, 1]) == pytest.approx(sorted(near.geometry.cross_cosine))
    assert sorted(drawn(panels[-1])[:, 0]) == pytest.approx(sorted(near.norms().norm))
    with pytest.raises(SettingError, match="without geometry"):
        plots.latent_geometry(replace(near, geometry=pd.DataFrame()))


@pytest.mark.parametrize("name", ["profile", "map", "gap", "alignment", "geometry"])
def test_a_saved_folder_gives_the_same_picture(report: Report, folder: Path, name: str):
    function = {
        "profile": plots.corruption_profile, "map": plots.decodability_map, "gap": plots.gap_profile,
        "alignment": plots.alignment_floors, "geometry": plots.latent_geometry,
    }[name]  # fmt: skip
    assert plots.svg(function(folder)) == plots.svg(report.plot(name))


def test_what_a_report_lacks_has_no_picture(report: Report, tmp_path: Path):
    alone = Report.load(report.corruption.save(tmp_path / "alone"))
    with pytest.raises(SettingError, match=r"(?s)'map'.*needed: one of 'profile'.*alignment: not measured"):
        alone.plot("map")
    with pytest.raises(ResultsError, match="holds no alignment"):
        plots.alignment_floors(tmp_path / "alone")
    with pytest.raises(ResultsError, match="holds other results"):
        plots.decodability_map(tmp_path / "alone")


def sweep(axes: dict[str, list]) -> PatchingSweep:
    """Two pairs at every cell, whose mean recovered fraction is the cell's number over 10."""
    cells = list(np.ndindex(*map(len, axes.values())))
    rows = [
        {"pair": pair, "corrupted_item": "b", "group": f"g{pair}", "site": "resid_pre", "layer": 0, "pos": "p", "head": 0,
         **{axis: labels[i] for (axis, labels), i in zip(axes.items(), cell, strict=True)}, "at": 1, "clean": 1.0,
         "corrupted": 0.0, "patched": number / 10 + (0.1 if pair else -0.1), "attributed": 0.0}
        for number, cell in enumerate(cells) for pair in (0, 1)
    ]  # fmt: skip
    return PatchingSweep(Results(pd.DataFrame(rows), {"axes": axes, "method": "both", "excluded": {"same": ["x"]}}))


def test_a_sweep_is_drawn_at_its_recovered_fractions():
    panel = plots.patching_map(sweep({"layer": [0, 1], "pos": ["latent[0]", "$a$"]})).axes[0]
    assert np.asarray(panel.images[0].get_array()) == pytest.approx(np.array([[0, 0.1], [0.2, 0.3]]))
    assert "2 pairs, 1 left out" in panel.get_title(loc="left")
    three = sweep({"layer": [0, 1], "pos": ["a", "b"], "head": [0, 1]})
    second = plots.patching_map(three, at=1).axes[0].images[0].get_array()
    assert np.asarray(second) == pytest.approx(np.array([[0.4, 0.5], [0.6, 0.7]]))
    for at in (None, 2):
        with pytest.raises(SettingError, match=rf"at={at}"):
            plots.patching_map(three, at=at)


def test_curves_are_those_of_the_log_with_their_bands(tmp_path: Path):
    log = [
        {"step": 0, "loss": 2.0, "learning_rate": 0.1},
        {"step": 5, "prism/gap": 0.5, "prism/gap_low": 0.4, "prism/gap_high": 0.6},
        {"step": 10, "loss": 1.0, "learning_rate": 0.0},
        {"step": 10, "train_loss": 9.0},
    ]
    finished = tmp_path / "model" / "training.json"
    running = tmp_path / "m.partial" / "checkpoint-10" / "trainer_state.json"
    for place, key in ((finished, "log"), (running, "log_history")):
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps({key: log}))
    for folder in (tmp_path / "model", tmp_path / "m.partial"):
        losses, rates, watched = plots.training_curves(folder).axes
        assert losses.lines[0].get_xydata().tolist() == [[0, 2], [10, 1]]
        assert [line.get_label() for line in losses.lines] == ["loss"] and len(rates.lines) == 1
        assert [line.get_label() for line in watched.lines] == ["gap"] and len(watched.collections) == 1
    with pytest.raises(ResultsError, match="no log of a training run"):
        plots.training_curves(tmp_path)
    finished.write_text('{"log": [')
    with pytest.raises(ResultsError, match="cut short"):
        plots.training_curves(tmp_path / "model")


def test_no_picture_is_kept_by_pyplot_or_changes_settings(report: Report):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = report.plot()
    assert figure._repr_svg_().startswith("<svg") and dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or figure not in sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib_the_message_names_the_extra(report: Report, monkeypatch: pytest.MonkeyPatch):
    for name in [one for one in sys.modules if one.startswith("prismlens.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match=r"pip install 'prismlens\[plots\]'"):
        report.plot()
