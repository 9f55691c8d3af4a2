"""corrupt, probe and doctor on the command line: words become operations, --json is JSON alone, status tells."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import types

import pytest
import typer
from typer.testing import CliRunner

import prismlens.doctor as library
from prismlens import Cut, DeleteKV, Noise, Scale, Skip, Swap, Zero, answer, image, latent
from prismlens.cli.app import app
from prismlens.cli.operations import check_scale, operation
from prismlens.errors import EditError


def called(*words: object, status: int = 0) -> str:
    """What a command prints on standard output."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status, done.output + repr(done.exception)
    return done.stdout


@pytest.mark.parametrize(
    ("text", "scale", "expected"),
    [
        ("zero", None, Zero()),
        ("noise", None, Noise(1.0, unit="std")),
        ("noise", 3.0, Noise(3.0, unit="std")),
        ("noise:sigma=2,unit=norm", 3.0, Noise(2.0, unit="norm")),
        ("noise:pure=true", None, Noise(1.0, unit="std", pure=True)),
        ("scale", -1.0, Scale(-1.0)),
        ("swap:donor=different-answer,pool=64", None, Swap(donor="different-answer", pool=64)),
        ("delete-kv", None, DeleteKV()),
        ("cut", None, Cut(to=latent, by=answer)),
        ("cut:to=image.box", None, Cut(to=image.box, by=answer)),
        ("skip:n=2", None, Skip(2)),
    ],
)
def test_words_become_operations(text: str, scale: float | None, expected: object):
    assert operation(text, scale) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zerro", "no operation is called 'zerro'"),
        ("steer", "operations with vectors are made in Python"),
        ("noise:sgma=3", "FIELD=VALUE with a field of noise: sigma"),
        ("noise:sigma", "FIELD=VALUE"),
        ("zero:n=1", "it has none"),
        ("scale", "without factor"),
        ("noise:unit=meters", "unit="),
    ],
)
def test_words_that_are_no_operation_are_refused(text: str, said: str):
    with pytest.raises(EditError, match=said):
        operation(text)


def test_a_strength_that_nothing_takes_is_refused():
    check_scale(["zero", "noise:unit=norm"], 2.0)
    with pytest.raises(EditError, match="--scale 2 with zero"):
        check_scale(["zero"], 2.0)


def test_corrupt_tells_vector_from_slot_and_json_has_the_numbers_of_the_table():
    words = ("corrupt", "tiny/slot", "--op", "zero", "--op", "delete-kv", "--n", 30)
    found = json.loads(called(*words, "--json"))
    lines = {line["condition"]: line for line in found["conditions"]}
    assert list(lines) == ["clean", "zero", "delete-kv"] and found["items"] == 30
    assert lines["zero"]["part"] == "vector" and lines["delete-kv"]["part"] == "slot"
    assert lines["zero"]["accuracy"] > lines["delete-kv"]["accuracy"] + 0.4
    assert lines["clean"]["change"] is None, "what is missing is null, not NaN"
    table = called(*words)
    for name, line in lines.items():
        row = next(text for text in table.splitlines() if text.startswith(f"{name} "))
        assert f"{line['accuracy']:.3f} [{line['low']:.3f}, {line['high']:.3f}]" in row


def test_a_site_a_mode_and_positions_reach_the_edit():
    words = ("corrupt", "tiny/bypass", "--op", "noise", "--scale", 2, "--site", "blocks.1.hook_resid_post")
    words += ("--positions", "latent[-1]", "--mode", "held", "--seed", 3, "--n", 4, "--json")
    (edit,) = json.loads(called(*words))["edits"]["noise"]
    for part in ("sigma=2.0", "blocks.1.hook_resid_post", "latent[-1]", "held", "seed 3"):
        assert part in edit


def test_probe_prints_every_cell_that_its_json_has():
    words = ("probe", "tiny/sft", "--n", 60, "--layer", 3, "--role", "question", "--role", "answer.source")
    words += ("--permutations", 3, "--controls", 1)
    found = json.loads(called(*words, "--json"))
    cells = {(cell["role"], cell["site"]): cell for cell in found["cells"]}
    assert {role for role, _ in cells} == {"question", "answer.source"} and found["gap"] is None
    table = called(*words)
    for (_, site), cell in cells.items():
        row = next(text for text in table.splitlines() if text.startswith(site))
        assert f"{cell['accuracy']:.2f}" in row and f"{cell['selectivity']:+.2f}" in row
    last = cells["answer.source", "blocks.3.hook_resid_post"]
    assert last["accuracy"] > last["majority"] + 0.2, "the letter is there right before it is said"


def test_zoo_as_json_lists_what_the_table_lists():
    models = json.loads(called("zoo", "--json"))["models"]
    table = called("zoo")
    assert len(models) > 10 and all(f"{one['accuracy']:.3f}" in table and one["name"] in table for one in models)


def test_doctor_finds_this_installation_sound():
    found = json.loads(called("doctor", "--json"))
    assert found["sound"] and {"torch", "wiring", "answers", "gpu", "extra train"} <= {
        f["what"] for f in found["findings"]
    }
    assert "nothing is wrong" in called("doctor", "--no-self-test")


def test_doctor_reports_a_library_out_of_range_a_missing_extra_and_a_foreign_torchvision(monkeypatch):
    real = library.version
    told = {"numpy": "1.26.0", "peft": None, "torchvision": "0.1"}
    monkeypatch.setattr(library, "version", lambda name: told[name] if name in told else real(name))

    def broken(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(library.importlib, "import_module", broken)
    found = {one["what"]: one for one in json.loads(called("doctor", "--no-self-test", "--json", status=1))["findings"]}
    assert found["numpy"]["state"] == library.WRONG and found["numpy"]["fix"].startswith("pip install 'numpy")
    assert (
        found["extra train"]["state"] == library.NOTE
        and found["extra train"]["fix"] == "pip install 'prismlens[train]'"
    )
    assert found["torchvision"]["state"] == library.WRONG and "nms" in found["torchvision"]["found"]
    assert "wrong: numpy, torchvision" in called("doctor", "--no-self-test", status=1)


def test_doctor_takes_an_exception_of_its_self_test_for_a_finding(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError("the weights are gone")

    monkeypatch.setattr(library, "load", fails)
    found = json.loads(called("doctor", "--json", status=1))["findings"]
    assert found[-1]["what"] == "self-test" and "the weights are gone" in found[-1]["found"]


def test_a_bar_is_shown_on_a_terminal_while_json_stays_alone_on_standard_output():
    command = [sys.executable, "-m", "prismlens", "corrupt", "tiny/bypass", "--op", "no-op", "--n", "4", "--json"]
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=600)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal that is closed
        while part := os.read(controller, 4096):
            shown += part
    os.close(controller)
    assert done.returncode == 0 and b"conditions" in shown and b"100%" in shown
    assert json.loads(done.stdout)["items"] == 4


def test_every_command_has_help_with_an_example_that_parses():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        text = " ".join((command.help or "").split())
        assert f"Example: prismlens {name}" in text, name
    assert "Exit status" in (group.epilog or "")


def test_an_interruption_ends_with_the_status_that_the_help_names(monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["prismlens.cli.corrupt"], "load_items", stopped)
    called("corrupt", "tiny/lvr", status=130)
