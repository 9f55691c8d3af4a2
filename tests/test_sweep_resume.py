"""Sweeps that outlive their process: killed, resumed, split over processes, and refused; compared byte by byte."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prismlens.errors import ResultsError
from prismlens.experiment import processes, shards
from prismlens.experiment.shards import InFolder, differences
from prismlens.results import Results
from prismlens.trace import PrismModel
from tests.plain_hooks import recording
from tests.sweep_cases import CONDITIONS, ITEMS, SEEDS, model, sweep

UNITS = 4


def program(*arguments: str, launcher: tuple[str, ...] = ("-m",)) -> str:
    """What `tests.sweep_cases` prints in a process of its own, or several, each with one thread."""
    root = Path(__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, *launcher, "tests.sweep_cases", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over threads round differently, and the processes below have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small() -> PrismModel:
    return model()


@pytest.fixture(scope="module")
def whole(small: PrismModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted sweep."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    sweep(out, small)
    return out


def test_a_finished_folder_holds_the_results_and_the_plan_and_nothing_else(whole, small):
    assert set(files(whole)) == {"plan.json", "results/rows.jsonl", "results/manifest.json"}
    in_memory = sweep(None, small)
    saved = Results.load(whole / "results")
    assert saved.manifest == in_memory.manifest
    assert saved.rows.equals(in_memory.rows)
    with recording(small.hf) as record:
        assert sweep(whole, small).rows.equals(saved.rows)
    assert len(record.fed) <= 2, "what is finished is read, not run again (the plan itself looks at one batch)"


def test_ten_kills_at_random_moments_do_not_change_one_byte(whole, tmp_path: Path):
    told = [line.split() for line in program("kill", str(tmp_path), "10").splitlines()]
    assert sum(what == "killed" for _, what, _ in told) == 10
    assert any(what == "killed" and int(parts) for _, what, parts in told), "some kill has to come half-way"
    ended = [tmp_path / f"killed-{number}" for number, what, _ in told if what == "through"]
    for out in (tmp_path / "timed", *ended):
        assert files(out) == files(whole), out


def test_two_processes_write_the_same_bytes_as_one(whole, tmp_path: Path):
    launcher = (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--module",
    )  # fmt: skip
    program("run", str(tmp_path), launcher=launcher)
    assert files(tmp_path / "sweep") == files(whole)


@pytest.mark.parametrize("after", [1, UNITS - 1, UNITS, 2 * UNITS - 1])
def test_stopped_after_any_part_it_goes_on_without_running_that_part_again(
    small, whole, tmp_path: Path, monkeypatch, after: int
):
    made: list[str] = []
    put = InFolder.put

    def stopping(self: InFolder, name: str, content: bytes) -> None:
        if len(made) == after:
            raise KeyboardInterrupt
        put(self, name, content)
        made.append(name)

    monkeypatch.setattr(InFolder, "put", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "x", small)
    first = list(made)
    monkeypatch.setattr(InFolder, "put", lambda self, name, content: (made.append(name), put(self, name, content))[1])
    sweep(tmp_path / "x", small)
    assert len(made) == len(set(made)) == 2 * UNITS and made[:after] == first
    assert files(tmp_path / "x") == files(whole)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"items": ITEMS[:9]}, "plan.n_items: 10 -> 9"),
        ({"items": [*ITEMS[:9], replace(ITEMS[9], question="What else?")]}, r"item_digests: \["),
        ({"conditions": {**CONDITIONS, "no-op": CONDITIONS["deleted"]}}, r"conditions\.no-op: \["),
        ({"seeds": (0, 6)}, r"seeds: \[0, 5\] -> \[0, 6\]"),
        ({"batch_rows": 3}, "plan.slots: 2 -> 1"),
        ({"on_missing": "raise"}, 'on_missing: "drop" -> "raise"'),
    ],
)
def test_another_plan_is_refused_and_the_differences_are_listed(small, whole, changed: dict, said: str):
    before = files(whole)
    more = {"conditions": {**CONDITIONS, "box": CONDITIONS["no-op"]}} if "on_missing" in changed else {}
    with pytest.raises(ResultsError, match=rf"begun under another plan: (.|\n)*{said}"):
        sweep(whole, small, **changed, **more)
    assert files(whole) == before


def test_another_model_is_refused(small, whole):
    other = replace(small, revision="0123", max_new_tokens=small.max_new_tokens + 1)
    with pytest.raises(ResultsError, match=r"weights: (.|\n)*max_new_tokens: 2 -> 3"):
        sweep(whole, other)


def test_a_folder_with_something_else_is_refused(small, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ResultsError, match=r"not the folder of a sweep: it holds thesis\.tex"):
        sweep(tmp_path, small)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ResultsError, match=r"plan\.json cannot be read"):
        sweep(tmp_path, small)


def test_a_part_that_cannot_be_written_whole_does_not_exist(tmp_path: Path, monkeypatch):
    kept = InFolder(tmp_path)
    kept.put("a", b"1")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(ResultsError, match="could not be written"):
        kept.put("b", b"2")
    assert kept.has("a") and not kept.has("b") and list(files(tmp_path)) == ["parts/a"]


def test_differences_name_the_place():
    before = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": None}
    assert differences(before, before) == []
    now = {"a": 1, "b": {"c": [1, 3], "d": 3}, "new": 0}
    assert differences(before, now) == ["b.c: [1, 2] -> [1, 3]", 'gone: null -> "nothing"', 'new: "nothing" -> 0']


def test_one_process_needs_no_accelerate_and_several_say_so(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert processes.launched() == processes.Processes(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception, match=r"2 processes without the library accelerate(.|\n)*prismlens\[train\]"):
        processes.launched()


def test_the_rows_hold_both_seeds(whole):
    rows = [json.loads(line) for line in (whole / "results" / "rows.jsonl").read_text().splitlines()]
    assert {row["seed"] for row in rows if row["condition"] == "noise"} == set(SEEDS)
    assert {row["seed"] for row in rows if row["condition"] in ("no-op", "box", "deleted", "clean")} == {None}
