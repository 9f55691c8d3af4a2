"""The page in a real browser: nothing is asked for, nothing runs, and everything fits, light and dark, wide and narrow."""

import os
from pathlib import Path

import pytest

from tests.browser.lab import CHROMIUM
from tests.test_report_page import hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
__all__ = ["hostile"]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_the_page_opens_offline_and_runs_nothing(hostile, tmp_path: Path, scheme, width):
    from playwright.sync_api import sync_playwright

    path = hostile.to_html(tmp_path / "report.html")
    asked, said = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("request", lambda one: asked.append(one.url))
        page.on("dialog", lambda one: (said.append(one.message), one.dismiss()))
        page.on("console", lambda one: said.append(one.text))
        page.goto(path.as_uri())
        loaded = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
        assert loaded == [True] * 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        bright = {name: sum(map(int, text[4:-1].split(","))) for name, text in (("ink", ink), ("paper", paper))}
        assert (bright["ink"] > bright["paper"]) == (scheme == "dark")
        shots = Path(os.environ.get("PRISMLENS_SCREENSHOTS", tmp_path))
        page.screenshot(path=shots / f"report-{scheme}.png", full_page=True)
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] and said == []
