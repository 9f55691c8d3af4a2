"""The widget in JupyterLab and Notebook 7: a click on a cell shows a state, and strength moves the probabilities."""

import os
import re
from pathlib import Path

import pytest

from tests.browser.lab import CHROMIUM, lab_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
CELL = "import prismlens as pl\npl.explore(pl.load('tiny/bottleneck'), pl.load_items('shapes', n=30))"
ROOT = Path(__file__).parents[2]


def shots(tmp_path: Path) -> Path:
    """Where screenshots go: beside the tests' own output unless a folder is named."""
    folder = Path(os.environ.get("PRISMLENS_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shares(text: str) -> list[float]:
    """The probabilities of the options that the page shows, the present ones."""
    return [float(value) for value in re.findall(r"(\d\.\d{3})\s*was", text)]


@pytest.mark.parametrize(("app", "dark"), [("lab", False), ("lab", True), ("notebook", False)])
def test_a_person_can_break_the_latents_and_look_at_a_state(tmp_path, app, dark):
    name = f"explore-{app}-{'dark' if dark else 'light'}"
    with lab_page(tmp_path, [CELL], dark=dark, app=app) as page:
        output = page.locator(".jp-OutputArea-output").first
        page.get_by_text("the sequence").wait_for()
        page.get_by_role("status").filter(has_text="ready").wait_for()
        before = shares(output.inner_text())
        assert len(before) == 4 and sum(before) == pytest.approx(1, abs=0.01)

        page.get_by_title(re.compile("^layer 0, z1:")).click()
        page.get_by_text("layer 0, latent z1", exact=True).wait_for()
        page.get_by_role("status").filter(has_text="ready").wait_for()
        first, looked = (page.get_by_label(label).inner_html() for label in ("nearest", "attention"))
        page.get_by_title(re.compile("^layer 3, z4:")).focus()
        page.keyboard.press("Enter")
        page.get_by_text("layer 3, latent z4", exact=True).wait_for()
        assert page.get_by_label("nearest").inner_html() != first
        assert page.get_by_label("attention").inner_html() != looked
        page.screenshot(path=shots(tmp_path) / f"{name}-cell.png")

        slider = page.get_by_role("slider").first
        slider.focus()
        page.keyboard.press("End")
        page.get_by_text("Scale(factor=0.0)").wait_for()
        page.get_by_role("status").filter(has_text="ready").wait_for()
        after = shares(output.inner_text())
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.1
        page.screenshot(path=shots(tmp_path) / f"{name}-zeroed.png")
