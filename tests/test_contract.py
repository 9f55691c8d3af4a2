"""The house rules, read off the source: layers, one-way imports, quarantined libraries, and short files."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "prismlens"
LAYERS = """
cli | widgets
demo | exploration | doctor
compare
prism | monitor
report
plots
verdict | table | report_folder
alignment | decodability | corruption | patching | lens
experiment
training
trace
models
interventions | probes | data
comparison | results | cache
sites | positions | stats | metrics
unrolled
types
page | showing
markup | errors
"""
"""Top layer first; a row imports only rows below, and siblings (`|`) may not see each other."""

RANK = {name.strip(): rank for rank, row in enumerate(reversed(LAYERS.strip().splitlines())) for name in row.split("|")}
UNRANKED = {"__init__", "__main__"}
"""Entrances: they may import any layer, and nothing may import them."""

QUARANTINE = {
    "nnsight": {"trace"},
    "ipywidgets": {"widgets"},
    "accelerate": {"training", "experiment"},
    "peft": {"training"},
    "datasets": {"data"},
    "matplotlib": {"plots"},
    "plotly": {"plots"},
}
"""A library and the only layers that may import it."""
FILE_LINES, FUNCTION_LINES = 300, 60


def layer_of(path: Path, package: Path) -> str:
    """The first part of a module's path inside the package."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == PACKAGE:
                yield from (f"{PACKAGE}!{alias.name}" for alias in node.names)


def violations(package: Path) -> list[str]:
    """Everything in a source tree that breaks a rule, a line each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        tree, layer, name = ast.parse(text), layer_of(path, package), path.relative_to(package)
        found += [f"{name}: {problem}" for problem in (*import_problems(tree, layer), *size_problems(tree, text))]
    return found


def import_problems(tree: ast.AST, layer: str) -> Iterator[str]:
    """What a file of a layer imports and may not."""
    if layer not in RANK and layer not in UNRANKED:
        yield f"the module {layer!r} is in no layer"
        return
    for module in imports(tree):
        parts = module.split(".")
        if module.startswith("."):
            yield "imports relatively"
        elif layer in UNRANKED:
            continue
        elif module == PACKAGE or "!" in module:
            yield "imports from the package root"
        elif parts[0] == PACKAGE and parts[1] != layer and RANK.get(parts[1], 99) >= RANK[layer]:
            yield f"layer {layer!r} imports {parts[1]!r}, which is not below it"
        elif parts[0] in QUARANTINE and layer not in QUARANTINE[parts[0]]:
            yield f"layer {layer!r} imports {parts[0]!r}"


def size_problems(tree: ast.Module, text: str) -> Iterator[str]:
    """What is too long, undocumented, or imported by star."""
    if text.count("\n") > FILE_LINES:
        yield f"has {text.count(chr(10))} lines"
    if text.strip() and ast.get_docstring(tree) is None:
        yield "does not begin with a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{node.name} has {length} lines"
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield "imports by star"


def test_the_package_keeps_the_rules():
    assert violations(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("types.py", '"""."""\nfrom prismlens.trace import load', "layer 'types' imports 'trace'"),
        ("data/a.py", '"""."""\ndef f():\n    import prismlens.interventions', "layer 'data' imports 'interventions'"),
        ("models/a.py", '"""."""\nimport nnsight', "layer 'models' imports 'nnsight'"),
        ("stats/a.py", '"""."""\nfrom prismlens import Item', "imports from the package root"),
        ("stats/a.py", '"""."""\nfrom . import b', "imports relatively"),
        ("novel.py", '"""."""', "is in no layer"),
        ("types.py", "x = 1", "does not begin with a docstring"),
        ("types.py", '"""."""\n' + "x = 1\n" * 300, "has 301 lines"),
        ("types.py", '"""."""\ndef f():\n' + "    x = 1\n" * 60, "f has 61 lines"),
        ("types.py", '"""."""\nfrom os import *', "imports by star"),
    ],
)
def test_each_rule_is_enforced(tmp_path: Path, file: str, text: str, problem: str):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert any(problem in one for one in violations(tmp_path / PACKAGE)), violations(tmp_path / PACKAGE)


def test_a_file_may_import_what_lies_below_and_its_own_folder(tmp_path: Path):
    path = tmp_path / PACKAGE / "trace" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text('"""."""\nimport nnsight\nfrom prismlens.trace.b import c\nfrom prismlens.models.lvr import d')
    assert violations(tmp_path / PACKAGE) == []


def test_the_architecture_document_shows_the_same_layers():
    table = re.search(r"```layers\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert table is not None and table[1].strip() == LAYERS.strip()


def test_no_tracked_text_names_a_place_of_one_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    places = re.compile(r"(?<![\w.])/(?:root|home|work|farm)/")
    texts = [path for path in tracked if path.endswith((".py", ".md", ".toml", ".txt", ".json", ".yaml"))]
    assert [path for path in texts if places.search((ROOT / path).read_text())] == []
