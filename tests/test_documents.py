"""Every Python block of the README and of the documents runs, and every command line in them parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from prismlens.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def python_of(text: str) -> str:
    """The Python blocks of a page as one program, each with the line that it stands at."""
    parts = []
    for match in FENCE.finditer(text):
        if match[2] == "python":
            line = text.count("\n", 0, match.start()) + 2
            parts.append(f"# line {line}\n" + re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE))
    return "\n".join(parts)


def commands_of(text: str) -> list[str]:
    """The lines that call the command line: in blocks, with or without a prompt, comments cut off."""
    outside = FENCE.sub(lambda m: m[3] if m[2] in ("", "sh", "bash", "console") else "", text)
    lines = [
        line.strip().removeprefix("$ ") for line in outside.splitlines() if line.startswith("    ") or "$ " in line
    ]
    blocks = [
        line.strip().removeprefix("$ ")
        for m in FENCE.finditer(text)
        if m[2] in ("sh", "bash", "console")
        for line in m[3].splitlines()
    ]
    return sorted(
        {
            line.split("  #")[0].split(" # ")[0].split(" > ")[0].rstrip()
            for line in (*lines, *blocks)
            if line.startswith("prismlens ")
        }
    )


with_python = [page for page in PAGES if python_of(page.read_text()) and page.parent.name != "how-to"]
RUNNER = """
import os, sys
from pathlib import Path
for page in map(Path, sys.argv[1:]):
    os.makedirs(page.stem)
    os.chdir(page.stem)
    exec(compile(page.read_text(), page.name, "exec"), {"__name__": "__main__"})
    os.chdir("..")
"""
COMMANDS = sorted({command for page in PAGES for command in commands_of(page.read_text())})


@pytest.mark.parametrize("page", with_python, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs_from_an_empty_folder(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text(python_of(page.read_text()))
    done = program(tmp_path, script)
    assert done.returncode == 0, f"{page.name}, line numbers as in the comments:\n{done.stderr[-3000:]}"


def test_every_how_to_runs_in_names_and_a_folder_of_its_own(tmp_path):
    """All in one process, which imports the libraries once."""
    pages = []
    for page in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        if text := python_of(page.read_text()):
            pages.append(tmp_path / f"{page.stem}.py")
            pages[-1].write_text(text)
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    done = program(tmp_path, runner, *pages)
    assert len(pages) >= 7 and done.returncode == 0, f"line numbers as in the comments:\n{done.stderr[-3000:]}"


def program(tmp_path: Path, *words: Path) -> subprocess.CompletedProcess[str]:
    """Python with these words, from an empty folder."""
    work = tmp_path / "work"
    work.mkdir()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=work,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_of_the_documents_parses(line):
    words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    assert words[0] in group.commands, f"there is no command {words[0]!r}"
    command = group.commands[words[0]]
    command.make_context(words[0], words[1:])  # raises UsageError on an unknown option or a missing argument


def test_the_finders_find():
    text = "```python\na = 1\n```\n    prismlens zoo  # list\n```sh\n$ prismlens demo\n```\n"
    assert python_of(text) == "# line 2\na = 1\n"
    assert commands_of(text) == ["prismlens demo", "prismlens zoo"]


def test_the_documentation_builds_without_a_broken_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "index.html").read_text().count("doc-heading") > 50
