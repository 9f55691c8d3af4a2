"""The widget without a browser: what it shows changes with what is chosen, and errors are shown in it."""

import pytest
from PIL import Image

import prismlens as pl
import prismlens.markup as markup
from prismlens.errors import SettingError
from prismlens.exploration import KNOBS, Exploration
from prismlens.widgets.explorer import Explorer
from prismlens.widgets.heat_map import colour


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    return Exploration(pl.load("tiny/bottleneck"), pl.load_items("shapes", n=12))


def test_the_strength_moves_the_bars_and_zero_is_the_clean_run(exploration):
    widget = Explorer(exploration)
    clean = widget.bars.value
    assert "as the model runs" in clean and "ready" in widget.status.value
    widget.strength.value = 1.0
    assert "Scale(factor=0.0)" in widget.bars.value
    widget.strength.value = 0.0
    assert widget.bars.value == clean


def test_an_item_a_map_and_a_cell_can_be_chosen(exploration):
    widget = Explorer(exploration)
    first = widget.picture.value, widget.strip.value
    widget.item.value = 3
    assert (widget.picture.value, widget.strip.value) != first and "ready" in widget.status.value
    lens = [button.description for button in widget.heat.cells.values()]
    widget.map.value = "effect of zeroing"
    assert [button.description for button in widget.heat.cells.values()] != lens
    widget.heat.cells[2, 1].click()
    assert "layer 2, latent z2" in widget.detail.value


def test_some_latents_alone_become_a_role_of_these(exploration):
    widget = Explorer(exploration)
    widget.strength.value = 0.5
    widget.steps.value = (0, 2)
    edit = widget.edit()
    assert edit is not None and str(edit.positions) == "latent[0] | latent[2]"
    widget.steps.value = ()
    assert widget.edit() is None


def test_what_goes_wrong_is_shown_and_does_not_stop_the_widget(exploration):
    widget = Explorer(exploration)
    widget.operation.value = list(KNOBS)[-1]
    widget.site.value = widget.site.options[1]
    assert 'role="alert"' in widget.status.value and "hook_latent" in widget.status.value
    widget.site.value = widget.site.options[0]
    assert "ready" in widget.status.value


def test_outside_a_notebook_there_is_a_message():
    with pytest.raises(SettingError, match="outside a notebook"):
        pl.explore(pl.load("tiny/lvr"), pl.load_items("shapes", n=2))


def test_without_ipywidgets_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"prismlens\[widgets\]"):
        pl.explore(pl.load("tiny/lvr"), pl.load_items("shapes", n=2))


def test_nothing_from_an_item_is_markup():
    bad = "<script>alert(1)</script>\"'"
    made = (
        markup.facts({bad: bad}) + markup.title(bad, bad) + markup.strip([(bad, "#fff", bad)])
        + markup.bars({bad: 0.5}, before={bad: 0.2}, marked=bad) + markup.picture(Image.new("RGB", (4, 4)), label=bad)
    )  # fmt: skip
    assert "<script>" not in made and made.count("&lt;script&gt;") == 8


def test_an_item_and_a_run_show_themselves_and_escape_what_they_hold(exploration, tmp_path):
    bad = "<b onclick='x'>"
    item = pl.Item(image=tmp_path / "none.png", question=bad, options=(bad, "ok"), answer="A", id=bad, meta={bad: bad})
    shown = item._repr_html_()
    assert "<b onclick" not in shown and "cannot be shown" in shown and "✓" in shown
    real = exploration.items[0]._repr_html_()
    assert "data:image/png" in real and real.count("<rect") == 2 * len(exploration.items[0].boxes)
    run = exploration.clean._repr_html_()
    assert f"{sum(exploration.clean.correct)} of 12 right" in run and "and 2 more" in run


def test_colours_are_white_at_nothing_and_differ_by_sign():
    assert colour(0.0)[0] == "#ffffff" and colour(1.0)[0] == "#0072b2" and colour(-1.0)[0] == "#d55e00"
