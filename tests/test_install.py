"""With the core requirements alone everything but the extras works, and each extra that is missing says how to get it."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

PROGRAM = '''
import json, sys
from importlib.machinery import PathFinder

HIDDEN, FIND = set(sys.argv[1].split(",")), PathFinder.find_spec

def find(name, path=None, target=None):
    """As if the libraries were not installed."""
    return None if name.partition(".")[0] in HIDDEN else FIND(name, path, target)

PathFinder.find_spec = staticmethod(find)
import prismlens as pl
from prismlens.cli import main

model, items = pl.load("tiny/bypass"), pl.load_items("shapes", n=6)
test = pl.corruption_test(model, items, conditions={"zero": (pl.Edit(pl.Zero()),)})
said = {"changed": int(test.frame().changed["zero"])}

def message(call):
    try:
        call()
    except pl.PrismlensError as error:
        return str(error)
    except SystemExit as error:
        return f"status {error.code}"
    return "no error"

said["explore"] = message(lambda: pl.explore(model, items))
sys.argv = ["prismlens", "train", "lvr", "--out", "never"]
said["train"] = message(main)
print(json.dumps(said), end="")
'''
MODULES = {"pillow": "PIL", "mkdocs-material": "mkdocs"}
"""Distribution -> module, where the names differ."""


def needed(name: str, extra: str = "") -> set[str]:
    """The distributions that one requires, and those that they require; with an extra, that extra's alone."""
    found: set[str] = set()
    todo = [(need.name, "") for need in requirements(name, extra)]
    while todo:
        one, _ = todo.pop()
        if one.lower() not in found:
            found.add(one.lower())
            todo += [(need.name, "") for need in requirements(one, "")]
    return found


def requirements(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires here, with or without an extra; nothing of one that is not installed."""
    try:
        needs = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]


def optional() -> list[str]:
    """The modules of every extra that nothing in the core brings with it."""
    named = {
        need.name.lower() for text in requires("prismlens") or () if (need := Requirement(text)).marker is not None
    }
    only = named - needed("prismlens") - {"prismlens"}
    return sorted(MODULES.get(name, name.replace("-", "_")) for name in only)


def test_the_core_works_without_any_extra_and_each_missing_one_says_which_install_fixes_it(tmp_path):

    hidden = optional()
    assert {"peft", "datasets", "matplotlib", "ipywidgets", "beartype"} <= set(hidden)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(hidden)],
        capture_output=True, text=True, cwd=tmp_path, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["changed"] == 0
    assert "pip install 'prismlens[widgets]'" in said["explore"]
    assert said["train"] == "status 1" and "pip install 'prismlens[train]'" in done.stderr
    assert not (tmp_path / "never").exists()
