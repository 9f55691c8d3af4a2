"""The tutorials run from an empty folder, and are stored with their outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
PARTS = (
    "**Question.**",
    "**Predict first.**",
    "**What this shows.**",
    "**What it does not show.**",
    "## Exercise",
    "<details>",
)
PATIENCE = 900


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_prints_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    NotebookClient(
        again, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for old, new in zip(stored.cells, again.cells, strict=True):
        if old.cell_type == "code":
            assert kinds(old) == kinds(new), old.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_is_stored_with_its_outputs_and_teaches(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "a cell was never run"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "cells were run out of order"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [part for part in PARTS if part not in text] == []


def test_there_are_tutorials():
    numbers = [int(path.stem[:2]) for path in NOTEBOOKS]
    assert numbers and numbers == sorted(set(numbers))


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows: pictures, values and text; progress and warnings on stderr apart."""
    return [output.output_type for output in cell.outputs if output.get("name") != "stderr"]
