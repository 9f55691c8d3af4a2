"""Items, runs and caches show themselves: the same facts as HTML in a notebook and as text elsewhere."""

import re

import pytest

import prismlens as pl
from prismlens.errors import SiteError
from tests.report_cases import small_items, small_model


def test_an_item_and_a_run_are_text_outside_a_notebook(capsys: pytest.CaptureFixture[str]):
    items = small_items()[:2]
    pl.show(items[0])
    text = capsys.readouterr().out
    assert items[0].question in text and f"{items[0].answer} {items[0].content}  <- answer" in text and "boxes" in text
    run = small_model().generate(items)
    run.show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run of 2 items, {sum(map(bool, run.correct))} of 2 right"
    assert lines[1].startswith(f"{items[0].id}: chose {run.choice[0]}, answer {items[0].answer}, ")


def test_a_cache_shows_its_norms_by_layer_and_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    cache = small_model().run_with_cache(small_items()[:2], "resid_post", positions=pl.latent)[1]
    cache.show("resid_post")
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert names == list(cache) and text.splitlines()[0].split() == ["mean", "norm", "latent"]
    expected = cache[names[1]].float().norm(dim=-1).mean()
    assert float(text.splitlines()[2].split()[1]) == pytest.approx(float(expected), abs=0.006)
    seen = []
    monkeypatch.setattr("prismlens.showing.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", seen.append)
    cache.show(names[1])
    assert re.findall(r">(\d+\.\d\d)<", seen[0]._repr_html_()) == [text.splitlines()[2].split()[1]]
    with pytest.raises(SiteError, match=r"without 'mlp_out'"):
        cache.show("mlp_out")
