"""The command line as a user types it: what it prints, what it leaves on disk, and what it says of bad input."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from prismlens import Report
from prismlens.cli import main
from prismlens.data.shapes import shapes
from prismlens.models.checkpoint import save_checkpoint
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.training.architecture import initialise, tiny_config, tiny_processor

MINI = Path(__file__).parent / "data" / "vstar_mini"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model as a folder: what the commands do must not depend on what it knows."""
    processor = tiny_processor(start=True)
    config = tiny_config(processor.tokenizer, layers=2, latent_steps=2, latent_close=[9, 10])
    model = LVRForConditionalGeneration(config)
    initialise(model, 0)
    target = tmp_path_factory.mktemp("models") / "untrained"
    save_checkpoint(model, processor, target)
    return target


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, as installed."""
    command = [sys.executable, "-m", "prismlens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


@pytest.fixture(scope="module")
def prism_on_photographs(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "mini"
    return run("prism", folder, "--items", f"vstar:{MINI}", "--out", out, "--html", out / ".." / "page.html"), out


def test_prism_on_photographs_prints_a_table_a_plain_verdict_and_saves(prism_on_photographs):
    done, out = prism_on_photographs
    assert done.returncode == 0, done.stderr
    for text in ("9 items", "slot: keys and values deleted", "undecided", "not above the majority rate", "saved in"):
        assert text in done.stdout
    assert done.stderr == "", "no bar where nobody looks"
    report = Report.load(out)
    assert "<h2>Verdict</h2>" in (out.parent / "page.html").read_text() and f"page: {out.parent}" in done.stdout
    assert report.table().strip() in done.stdout and str(report.verdict) in done.stdout
    assert set(json.loads((out / "manifest.json").read_text())["manifest"]["left_out"]) == {"swap, other answer"}


def test_an_output_folder_that_holds_another_run_is_refused_before_anything_runs(prism_on_photographs, folder: Path):
    _, out = prism_on_photographs
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = run("prism", folder, "--items", f"vstar:{MINI}", "--out", out)
    assert done.returncode == 1 and "already holds saved results" in done.stderr
    assert done.stdout == "" and "conditions" not in done.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_ask_answers_with_probabilities_that_sum_to_one(folder: Path, tmp_path: Path):
    shapes(1)[0].image.save(tmp_path / "scene.png")
    done = run("ask", folder, "scene.png", "What is it?", "--option", "red", "--option", "blue", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "latents: 2" in done.stdout
    shares = [float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prism", "tiny/lvrr"), "no shipped model is called 'tiny/lvrr'"),
        (("prism", "no/such/folder"), "no model at"),
        (("prism", "MODEL", "--items", "shape"), "no items are called 'shape'"),
        (("prism", "MODEL", "--items", "vstar:nowhere"), "does not exist"),
        (("prism", "MODEL", "--n", "0"), "n = 0"),
        (("ask", "MODEL", "missing.png", "What?"), "missing.png"),
        (("ask", "MODEL", "EMPTY", "What?"), "needed"),
        (("ask", "MODEL", "EMPTY", "What?", "--latent-steps", "0"), "latent_steps = 0"),
    ],
)
def test_bad_input_ends_with_a_message_and_no_traceback(
    folder: Path, tmp_path: Path, monkeypatch, capsys, arguments: tuple[str, ...], said: str
):
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    if said.startswith("latent_steps"):
        shapes(1)[0].image.save(empty)
    places = {"MODEL": folder, "EMPTY": empty}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", ["prismlens", *(str(places.get(word, word)) for word in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 1 and captured.out == ""
    assert said in captured.err and "Traceback" not in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png"]


def test_an_unknown_option_is_a_usage_error(folder: Path):
    done = run("prism", folder, "--sead", 3)
    assert done.returncode == 2 and "--sead" in done.stderr


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("prism", "ask", "zoo", "demo"):
        assert command in done.stdout
