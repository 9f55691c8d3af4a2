"""Whole runs: interrupted and uninterrupted, split and whole, refused and broken ones; two layers, a few steps."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismlens.data.load import load_items
from prismlens.errors import SettingError, TrainingError
from prismlens.models.checkpoint import load_checkpoint
from prismlens.trace import load
from prismlens.training.callback import PrismCallback
from prismlens.training.settings import TINY_RUN
from prismlens.training.sources import ItemSource, SceneSource
from prismlens.training.train import train
from prismlens.training.trainer import LatentTrainer, last_checkpoint
from prismlens.training.variants import Phase, Stage, Variant

SETTINGS = replace(TINY_RUN, steps=6, batch=4, save_every=2, log_every=1, bf16=False)
SCENES = SceneSource(count=12)
SCRIPT = """
import sys
from pathlib import Path
from tests.test_training_run import SCENES, SETTINGS
from prismlens.training.train import train
train("n-lvr", "tiny/base", SCENES, Path(sys.argv[1]), settings=SETTINGS, progress=False)
"""


def run(variant, out: Path, settings=SETTINGS, source=SCENES, **more):
    return train(variant, "tiny/base", source, out, settings=settings, progress=False, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(trained) -> list[float]:
    return [line["loss"] for line in trained.log if "loss" in line]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over threads round differently, and the processes below have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted run."""
    return run("n-lvr", tmp_path_factory.mktemp("whole") / "model")


def test_a_run_writes_a_model_that_answers_and_its_manifest(whole):
    model = load(whole.folder)
    assert model.generate(load_items("shapes", n=2)).steps_taken.tolist() == [4, 4]
    manifest = json.loads((whole.folder / "training.json").read_text())
    assert manifest["variant"]["noise"] == 0.3 and manifest["settings"]["steps"] == 6
    assert len(losses(whole)) == 6 and losses(whole)[-1] < losses(whole)[0]
    assert not whole.folder.with_name("model.partial").exists()


def test_the_tower_stays_as_it_was(whole):
    base, _ = load_checkpoint("tiny/base")
    own = weights(whole.folder)
    for name, value in base.state_dict().items():
        if name.startswith("model.visual."):
            assert torch.equal(own[name], value), name
    assert not torch.equal(
        own["model.language_model.norm.weight"], base.state_dict()["model.language_model.norm.weight"]
    )


def test_a_killed_run_goes_on_to_the_same_weights(whole, tmp_path: Path):
    out = tmp_path / "model"
    command = [sys.executable, "-c", SCRIPT, str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while last_checkpoint(out.with_name("model.partial")) is None:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = run("n-lvr", out)
    first = next(line for line in again.log if "loss" in line)
    assert first["step"] == 1 and losses(again) == losses(whole)  # the log of the first part is kept too
    theirs = weights(whole.folder)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(out).items())


def test_micro_batches_do_not_change_the_loss(whole, tmp_path: Path):
    split = run("n-lvr", tmp_path / "split", replace(SETTINGS, accumulate=4))
    assert losses(split) == pytest.approx(losses(whole), abs=1e-4)


def test_two_processes_do_not_change_the_loss(whole, tmp_path: Path):
    out = tmp_path / "two"
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script), str(out),
    ]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((out / "training.json").read_text())["log"]
    assert [line["loss"] for line in log if "loss" in line] == pytest.approx(losses(whole), abs=1e-4)


def test_gradient_checkpointing_does_not_change_the_weights(whole, tmp_path: Path):
    again = run("n-lvr", tmp_path / "model", replace(SETTINGS, gradient_checkpointing=True))
    assert losses(again) == pytest.approx(losses(whole), abs=1e-5)
    with pytest.raises(TrainingError, match="gradient checkpointing with 'bottleneck'"):
        run("bottleneck", tmp_path / "own", replace(SETTINGS, gradient_checkpointing=True))


def test_another_configuration_is_refused_and_the_differences_are_listed(tmp_path: Path, monkeypatch):
    def stop(self, model, trial):
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentTrainer, "_save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        run("lvr", tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(TrainingError, match=r"(?s)settings.lr: 0.001 there, 0.002 now.*the same variant"):
        run("lvr", tmp_path / "model", replace(SETTINGS, lr=2e-3))
    with pytest.raises(TrainingError, match=r"variant\.noise: 0\.0 there, 0\.3 now"):
        run("n-lvr", tmp_path / "model")
    assert (tmp_path / "model.partial" / "run.json").exists()


def test_a_taken_folder_is_refused_and_left_alone(whole):
    before = {path.name: path.stat().st_mtime_ns for path in whole.folder.iterdir()}
    with pytest.raises(TrainingError, match="exists and is not an empty folder"):
        run("n-lvr", whole.folder)
    assert {path.name: path.stat().st_mtime_ns for path in whole.folder.iterdir()} == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_items(tmp_path: Path):
    base, processor = load_checkpoint("tiny/base")
    items = list(load_items("shapes", n=12))
    source = ItemSource(items, "own")
    settings = replace(SETTINGS, facts=0.0, lr=1e25)
    with pytest.raises(TrainingError, match=r"(?s)the loss is (nan|inf) at step \d+ .*shapes-test"):
        train("lvr", (base, processor), source, tmp_path / "model", settings=settings, progress=False)
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch):
    import prismlens.training.trainer as module

    real, calls = module.save_model, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "save_model", full)
    with pytest.raises(
        TrainingError, match=r"(?s)step 4 could not be written: .*No space left.*goes on from checkpoint-2"
    ):
        run("lvr", tmp_path / "model")
    monkeypatch.undo()
    kept = last_checkpoint(tmp_path / "model.partial")
    assert kept is not None and kept.name == "checkpoint-2"
    assert run("lvr", tmp_path / "model").folder.exists()


def test_items_train_with_and_without_a_cache_to_the_same_weights(tmp_path: Path):
    items = load_items("shapes", n=12)
    settings = replace(SETTINGS, facts=0.0, batch=2, pack_items=3, steps=3)
    cached = run("p-lvr-3", tmp_path / "a", settings, ItemSource(items, "own", cache=tmp_path / "cache"))
    live = run("p-lvr-3", tmp_path / "b", settings, ItemSource(items, "own"))
    assert losses(cached) == pytest.approx(losses(live), abs=1e-5)
    assert load(tmp_path / "a").generate(items[:2]).steps_taken.tolist() == [4, 4]


def test_lora_trains_the_matrices_alone_and_merges_them(tmp_path: Path):
    pytest.importorskip("peft")
    trained = run("lvr", tmp_path / "model", replace(SETTINGS, lora=4, steps=3))
    base, _ = load_checkpoint("tiny/base")
    own, theirs = weights(trained.folder), base.state_dict()
    changed = {name for name in own if name in theirs and not torch.equal(own[name], theirs[name])}
    assert changed and all(name.endswith("_proj.weight") and "language_model.layers" in name for name in changed)
    assert not any("lora" in name for name in own)


def test_a_users_own_variant_with_a_head_and_a_learned_end(tmp_path: Path):
    mine = Variant(
        "mine", "gated head, leaves near a learned vector", (Phase(3),), stages=(Stage("latent"),), head="gated",
        end_vector=True, switch=0.1,
    )  # fmt: skip
    trained = run(mine, tmp_path / "model", replace(SETTINGS, steps=3))
    assert "switch" in trained.log[0]
    model = load(trained.folder)
    assert model.hf.has_head and model.hf.lvr_latent_end_emb is not None
    taken = model.generate(load_items("shapes", n=3)).steps_taken
    assert (taken >= 1).all() and (taken <= 4).all()


def test_the_callback_logs_what_it_was_given_and_changes_nothing(whole, tmp_path: Path):
    seen: list[int] = []

    def diagnose(model):
        seen.append(len(model.generate(load_items("shapes", n=2)).text))
        torch.rand(5)
        return {"accuracy": 0.25}

    again = run("n-lvr", tmp_path / "model", callbacks=[PrismCallback(diagnose, 4)])
    assert [line["step"] for line in again.log if "prism/accuracy" in line] == [4, 6] and len(seen) == 2
    theirs = weights(whole.folder)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again.folder).items())


def test_unknown_variants_and_uneven_batches_are_refused(tmp_path: Path):
    with pytest.raises(SettingError, match="no variant is called 'lvvr'"):
        run("lvvr", tmp_path / "model")
    with pytest.raises(SettingError, match="micro-batches of equal size"):
        replace(SETTINGS, accumulate=3)


def test_a_variants_own_batch_is_the_trainers_too(tmp_path: Path, capsys):
    """Each step belongs to its own phase: the second has no alignment in its loss."""
    mine = Variant("mine", "two phases, its own batch", (Phase(1), Phase(1, lam=0.0)), batch=8)
    trained = train(mine, "tiny/base", SCENES, tmp_path / "model", settings=replace(SETTINGS, steps=None))
    first, second = (line for line in trained.log if "loss" in line)
    assert first["loss"] == pytest.approx(first["text"] + 3 * first["align"] + 0.5 * first["facts"], rel=1e-4)
    assert second["loss"] == pytest.approx(second["text"] + 0.5 * second["facts"], rel=1e-4)
    assert json.loads((trained.folder / "training.json").read_text())["settings"]["batch"] == 8
    assert "mine: 2 steps of 8 packs, processes: 1" in capsys.readouterr().err
