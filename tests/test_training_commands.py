"""From the words of a command line to a run: settings, sources, and a run by the real program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prismlens.data.load import load_items
from prismlens.errors import SettingError
from prismlens.training.commands import settings_of, sharding, source_of
from prismlens.training.protocol import FAIR, PAPER
from prismlens.training.settings import PAPER_RUN, TINY_RUN
from prismlens.training.sources import ItemSource, SceneSource


def test_what_the_user_says_replaces_the_run_s_own_and_nothing_else():
    settings = settings_of("tiny", "fair", [], {"lam": 0.1, "steps": None, "seed": 3})
    assert (settings.lam, settings.seed, settings.steps, settings.lr) == (0.1, 3, None, TINY_RUN.lr)
    assert settings.protocol == FAIR
    assert settings_of("paper", "paper", [], {}).protocol == PAPER
    assert settings_of("paper", "fair", [], {}) == PAPER_RUN


def test_one_difference_can_be_flipped_alone():
    protocol = settings_of("tiny", "fair", ["align_mean=published"], {}).protocol
    assert protocol.align_mean == "published" and protocol.slots == FAIR.slots
    for wrong in ("align_mean", "mean=published", "align_mean=none"):
        with pytest.raises(SettingError, match="align_mean"):
            settings_of("tiny", "fair", [wrong], {})


def test_unknown_runs_and_protocols_are_refused():
    with pytest.raises(SettingError, match="run 'big'"):
        settings_of("big", "fair", [], {})
    with pytest.raises(SettingError, match="protocol 'fairer'"):
        settings_of("tiny", "fairer", [], {})
    with pytest.raises(SettingError, match="one of them"):
        sharding(Path("a"), Path("b"))


def test_specs_of_data(tmp_path: Path):
    options = {"image_root": None, "on_bad": "raise", "writes_start": False}
    assert isinstance(source_of("shapes", None, **options), SceneSource)
    item = load_items("shapes", n=1)[0]
    item.image.save(tmp_path / "a.png")
    row = {
        "image": "a.png", "bboxes": [[0.1, 0.1, 0.5, 0.5]],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "<lvr>\n<answer> red </answer>"}
        ],
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = source_of(f"viscot:{tmp_path / 'rows.jsonl'}", tmp_path / "cache", **options)
    assert isinstance(source, ItemSource) and len(source.rows) == 1
    with pytest.raises(SettingError, match="with shapes"):
        source_of("shapes", None, image_root=tmp_path, on_bad="raise", writes_start=False)


def test_the_program_trains_on_a_file_and_says_where_the_model_is(tmp_path: Path):
    rows = []
    for number, item in enumerate(load_items("shapes", n=6)):
        item.image.save(tmp_path / f"{number}.png")
        value = f"<lvr>\n<answer> {item.content} </answer>"
        rows.append({
            "image": f"{number}.png", "bboxes": [list(box) for box in item.boxes[:1]],
            "conversations": [
                {"from": "human", "value": f"<image>\n{item.question}"}, {"from": "gpt", "value": value}
            ],
        })  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [
        sys.executable, "-m", "prismlens", "train", "lvr", "--items", f"viscot:{tmp_path / 'rows.json'}", "--out",
        str(tmp_path / "model"), "--steps", "2", "--batch", "2", "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(f"saved in {tmp_path / 'model'}\n")
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert again.returncode == 1 and "exists and is not an empty folder" in again.stderr
