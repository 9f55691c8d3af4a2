"""The page: whole, offline, every string escaped; notebooks and terminals get the same in their own form."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prismlens.errors import ResultsError
from prismlens.page import POLICY
from prismlens.report import Report
from prismlens.results import Results
from tests.report_cases import small_report

EVIL = "<script>alert('x')</script>&<img src=x onerror=alert(1)>"
ALONE = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def renamed(results: Results, *old: str) -> Results:
    """The same with a hostile string in the place of those that stand in ids, labels and names."""
    rows, text, quoted = results.rows.copy(), json.dumps(results.manifest), json.dumps(EVIL)[1:-1]
    for one in old:
        for name in [name for name in rows if rows[name].map(type).eq(str).any()]:
            rows[name] = [value.replace(one, EVIL) if isinstance(value, str) else value for value in rows[name]]
        text = text.replace(one, quoted)
    return Results(rows, json.loads(text))


@pytest.fixture(scope="module")
def hostile() -> Report:
    """The small report with markup in every id and name."""
    plain = small_report()
    assert plain.decodability is not None
    return replace(
        plain,
        corruption=replace(plain.corruption, results=renamed(plain.corruption.results, "shapes-test", "tiny/")),
        decodability=replace(plain.decodability, results=renamed(plain.decodability.results, "shapes-test", "tiny/")),
        unaligned={name.replace("shapes-test", EVIL): EVIL for name in plain.unaligned},
    )


@pytest.fixture(scope="module")
def text(hostile: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    return hostile.to_html(tmp_path_factory.mktemp("page") / "report.html").read_text()


def test_nothing_from_an_item_or_a_model_becomes_markup(text: str):
    page = Page(text)
    assert page.text.count(EVIL) > 10, "the names are there, as text"
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link", "base", "form"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_asks_for_nothing_from_elsewhere(text: str):
    page = Page(text)
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in page.tags
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 5 and all(value and value.startswith("data:image/svg+xml;base64,") for value in sources)
    assert not re.search(r"url\(|@import", text)


def test_every_section_has_its_numbers(text: str, hostile: Report):
    page = Page(text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Verdict", "Conditions", "Where the answer can be read", "The gap", "Alignment with the targets", "Left out",
        "Manifest",
    ]  # fmt: skip
    for name, line in hostile.frame().iterrows():
        assert f"{line.accuracy:.3f} [{line.low:.3f}, {line.high:.3f}]" in page.text and str(name) in page.text
    assert hostile.verdict.vector.word in page.text and hostile.verdict.slot.reason in page.text
    for line in hostile.notes():
        assert line in page.text
    assert "transformers" in page.text and '"conditions"' in page.text


def test_a_report_without_parts_says_so_on_the_page(tmp_path: Path):
    alone = Report.load(small_report().corruption.save(tmp_path / "alone"))
    page = Page(alone.to_html(tmp_path / "report.html").read_text())
    assert page.text.count("Not measured: the folder was saved without it") == 3


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = small_report().to_html(tmp_path / "new" / "report.html")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ResultsError, match="could not be written"):
        small_report().to_html(path)
    assert [one.name for one in path.parent.iterdir()] == ["report.html"] and path.read_bytes() == before


def test_every_value_shows_itself_in_a_notebook_and_is_escaped(hostile: Report):
    assert hostile.decodability is not None and hostile.alignment is not None
    near = replace(hostile.alignment, rows=hostile.alignment.rows.assign(mode=EVIL))
    for value in (hostile, hostile.corruption, hostile.corruption.results, hostile.decodability, near):
        page = Page(value._repr_html_())
        assert EVIL in page.text and "script" not in {tag for tag, _ in page.tags}
    clean = hostile.frame().loc["clean"]
    assert f"{clean.accuracy:.3f} [{clean.low:.3f}, {clean.high:.3f}]" in Page(hostile._repr_html_()).text


def test_outside_a_notebook_a_report_is_text(capsys: pytest.CaptureFixture[str]):
    small_report().show()
    assert capsys.readouterr().out == f"{small_report().table()}\n{small_report().verdict}\n"


def test_in_a_notebook_a_report_is_displayed(monkeypatch: pytest.MonkeyPatch):
    seen: list[object] = []
    monkeypatch.setattr("prismlens.showing.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", seen.append)
    small_report().show()
    assert seen == [small_report()]
