"""compare on the command line: patterns, JSON alone, what is kept, and refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prismlens.cli.app import app
from prismlens.cli.compare import expanded
from prismlens.compare import Comparison
from prismlens.errors import ResultsError, SettingError
from prismlens.models.checkpoint import zoo_names


def test_patterns_stand_for_shipped_models_each_once() -> None:
    assert expanded(["tiny/*"]) == list(zoo_names())
    assert expanded(["tiny/p-lvr-?", "my/folder", "tiny/p-lvr-3"]) == ["tiny/p-lvr-2", "tiny/p-lvr-3", "my/folder"]
    with pytest.raises(SettingError, match="no shipped model is called 'tinny/"):
        expanded(["tinny/*"])


def test_json_is_alone_failures_are_named_and_the_rows_are_kept(tmp_path: Path) -> None:
    words = ["compare", "tiny/sft", "tiny/none-such", "--n", "6", "--on-bad", "skip", "--json"]
    words += ["--out", tmp_path / "out", "--html", tmp_path / "page.html"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert [line["model"] for line in found["models"]] == ["tiny/sft"] and list(found["failed"]) == ["tiny/none-such"]
    assert found["models"][0]["cosine_free"] is None and found["correlations"][0]["why"].startswith("0 of 1 models")
    back = Comparison.load(found["saved"])
    assert back.frame().accuracy.iloc[0] == pytest.approx(found["models"][0]["accuracy"])
    assert (tmp_path / "out" / "reports" / "tiny-sft" / "seed-0" / "rows.jsonl").is_file()
    assert "tiny/none-such: left out of the comparison" in Path(found["page"]).read_text()
    with pytest.raises(ResultsError, match="already holds"):
        CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
