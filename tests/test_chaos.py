"""Nothing is lost when stages are broken off; and a loss, if there were one, would be seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.chaos import CTRL_C, started
from scripts.chaos_stages import STAGES, Stage, differences, inspect, losses
from tests.test_rollouts import create, episode
from worldvae.checkpoint import save_model, save_tree, write_json
from worldvae.latents import LatentStore

ROOT = Path(__file__).parents[1]
STAGE = Stage("train_vae", "vae", exact="vae/model.safetensors")


def make_run(run: Path) -> Path:
    """A folder as a finished training leaves it, with three episodes."""
    store = create(run / "rollouts")
    for seed in range(3):
        store.append(episode(seed))
    save_model(run / "vae", "test", torch.nn.Linear(2, 2), {})
    save_tree(run / "vae/training.safetensors", {"step": 7, "state": torch.zeros(9)})
    write_json(run / "stages.json", {"train_vae": {"seconds": 1.0, "done": True}})
    return run


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(path: Path) -> None:
    shutil.copy(path.with_name("episode-000000.safetensors"), path)


def go_back(path: Path) -> None:
    save_tree(path, {"step": 6, "state": torch.zeros(9)})


def leave(path: Path) -> None:
    path.touch()


EPISODE, CHECKPOINT = "rollouts/episode-000001.safetensors", "vae/training.safetensors"


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        (EPISODE, delete, "is gone"),
        (EPISODE, cut, "is damaged"),
        (EPISODE, flip, "wrong checksum"),
        (EPISODE, replace, "more than once"),
        (EPISODE, replace, "has other bytes"),
        ("rollouts/rollouts.json", delete, "is gone"),
        ("rollouts/half an episode", leave, "does not belong there"),
        (CHECKPOINT, delete, "is gone"),
        (CHECKPOINT, empty, "is damaged"),
        (CHECKPOINT, flip, "is damaged"),
        (CHECKPOINT, go_back, "went back from step 7 to 6"),
        ("vae/model.safetensors", flip, "is damaged"),
        ("vae/config.json", delete, "is gone"),
        ("stages.json", empty, "is damaged"),
    ],
)
def test_a_loss_is_seen(tmp_path: Path, file: str, harm: Callable[[Path], None], words: str) -> None:
    before = inspect(make_run(tmp_path))
    assert before.broken == {}
    assert (before.progress("rollouts"), before.progress("vae")) == (3, 7)
    assert losses(before, before) == []
    harm(tmp_path / file)
    assert words in "; ".join(losses(before, inspect(tmp_path)))


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        (EPISODE, delete, "is missing at the end"),
        (CHECKPOINT, go_back, "ends at step 6, not 7"),
        ("vae/.model.safetensors.123.tmp", leave, "is left over"),
        ("stages.json", lambda path: write_json(path, {}), "does not say done"),
        ("vae", lambda path: save_model(path, "test", torch.nn.Linear(2, 2), {}), "differs from an unbroken run's"),
    ],
)
def test_another_end_than_an_unbroken_runs_is_seen(
    tmp_path: Path, file: str, harm: Callable[[Path], None], words: str
) -> None:
    unbroken, run = make_run(tmp_path / "unbroken"), tmp_path / "run"
    shutil.copytree(unbroken, run)
    assert differences(STAGE, run, unbroken) == []
    harm(run / file)
    assert words in "; ".join(differences(STAGE, run, unbroken))


def test_codes_that_differ_from_an_unbroken_runs_are_seen(tmp_path: Path) -> None:
    for name, seed in {"unbroken": 0, "again": 0, "other": 1}.items():
        make_run(tmp_path / name)
        write_json(tmp_path / name / "stages.json", {"encode": {"seconds": 1.0, "done": True}})
        (tmp_path / name / "latents").mkdir()
        write_json(tmp_path / name / "latents/latents.json", {"format_version": 1, "kind": "latents"})
        codes = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(seed)).numpy()
        kept = {"actions": np.zeros((4, 1)), "rewards": np.zeros(4, np.float32), "visible": np.ones(5, bool)}
        store = LatentStore(tmp_path / name / "latents")
        store.episodes.write(
            0, {"mean": codes[0], "logvar": codes[1], **kept}, {"terminated": True, "truncated": False}
        )
    assert differences(STAGES["encode"], tmp_path / "again", tmp_path / "unbroken") == []
    (told,) = differences(STAGES["encode"], tmp_path / "other", tmp_path / "unbroken")
    assert told == "latents/episode-000000.safetensors differs from an unbroken run's"


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("error: a sentence", file=sys.stderr, flush=True)
raise ValueError if sys.argv[1:] else SystemExit(1)
"""


def test_a_process_that_lives_on_and_a_traceback_are_seen() -> None:
    with started([sys.executable, "-c", PARENT]) as attempt:
        code = attempt.code(60)
        assert attempt.complaints(code, 1, within=0.2) == ["1 of its processes live on"]
        pids = attempt.left_over(0)
    with started([sys.executable, "-c", PARENT, "raise"]) as attempt:
        told = "; ".join(attempt.complaints(attempt.code(60), 130, within=0.2))
    assert "exit code 1, not 130: ValueError" in told
    assert "a traceback" in told
    assert not Path(f"/proc/{pids[0]}").exists() or Path(f"/proc/{pids[0]}/stat").read_text().split()[2] == "Z"


def test_a_blow_comes_too_late_for_a_command_that_has_ended() -> None:
    with started([sys.executable, "-c", ""]) as attempt:
        assert attempt.hit(CTRL_C, after=60, patience=60) == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_kills_of_every_stage_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "scripts.chaos", "--trials", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert told["losses"] == 0
    assert {name: stage["trials"] for name, stage in told["killed"].items()} == dict.fromkeys(told["killed"], 2)
    assert len(told["killed"]) == 6
