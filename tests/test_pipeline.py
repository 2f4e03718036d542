"""The whole way on the real CarRacing-v3, from no frames to a report, by the command line."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from scripts.cli import run
from worldvae import RolloutStore
from worldvae.checkpoint import read_json, write_json

ROOT = Path(__file__).parent.parent
EVALUATION_KEYS = {
    *("env", "env_version", "policy", "action_repeat", "latent", "config", "commit", "machine"),
    *("train_seed", "episode_seeds", "returns", "lengths", "mean", "sd", "ci95"),
    *("env_steps", "env_steps_total", "wall_seconds"),
}


def cli(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"scripts.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run of preset tiny (its folder's name has a space in it)."""
    folder = tmp_path_factory.mktemp("runs") / "a tiny run"
    done = cli("pipeline", "--preset", "tiny", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert "random policy, same episodes" in done.stdout
    assert done.stdout.rstrip().endswith(str(folder / "report.html"))
    return folder


def test_the_evaluation_tells_all_that_the_protocol_asks_for(tiny_run):
    told = read_json(tiny_run / "evaluation.json")
    assert set(told) >= EVALUATION_KEYS
    assert told["episode_seeds"] == [2_000_000, 2_000_001]
    assert told["env_steps_total"] == sum(told["env_steps"].values())
    rollouts = (tiny_run / "rollouts").glob("episode-*")
    assert told["env_steps"]["collect"] == 80 * len(list(rollouts))  # preset tiny: 80 env steps an episode
    assert 0 < told["env_steps"]["train"] <= 1600
    assert set(told["wall_seconds"]) == {"collect", "train", "evaluate"}
    random = read_json(tiny_run / "random.json")
    assert random["episode_seeds"] == told["episode_seeds"]


def test_the_report_opens_offline_and_shows_every_picture(tiny_run):
    page = (tiny_run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 7  # four of the codec, learning curves, latents, a dream
    assert page.count("data:video/webm;base64,") == 2  # the agent, a dream
    assert not re.search("not made|not trained", page)
    assert "linear-Gaussian" in page
    assert "published on v0" in page


def test_stages_that_are_done_are_not_done_again(tiny_run):
    before = (tiny_run / "stages.json").read_text()
    again = cli("pipeline", "--out", str(tiny_run), "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 7
    assert (tiny_run / "stages.json").read_text() == before


def test_a_stage_that_was_not_done_is_done_on_resume(tiny_run):
    stages = read_json(tiny_run / "stages.json")
    stages["encode"]["done"] = False
    write_json(tiny_run / "stages.json", stages)
    again = cli("pipeline", "--out", str(tiny_run), "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 6
    assert "bytes per frame" in again.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("pipeline", ["--out", "RUN", "--preset", "quick"], "holds another run"),
        ("pipeline", ["--out", "EMPTY", "--resume"], "cannot read .*run.json"),
        ("pipeline", ["--out", "EMPTY", "--seed", "-1"], "training seeds are"),
        ("pipeline", ["--out", "EMPTY", "--rounds", "0"], "--rounds must be >= 1"),
        ("collect", ["EMPTY", "--env", "NoSuch-v0"], "cannot make 'NoSuch-v0'"),
        ("collect", ["EMPTY", "--env", "CartPole-v1", "--frame.key", "pixels"], "no entry 'pixels'"),
        ("collect", ["RUN", "--env", "CarRacing-v3", "--backend", "sync"], "holds other rollouts"),
        ("train_vae", ["EMPTY"], "no rollouts in"),
        ("train_vae", ["RUN", "--device", "cuda"], "use --device cpu"),
        ("encode", ["EMPTY"], "no rollouts in"),
        ("train_dynamics", ["EMPTY"], "no rollouts in"),
        ("train_agent", ["EMPTY"], "no rollouts in"),
        ("train_agent", ["RUN", "--memory", "trained"], "under other settings"),
        ("evolve", ["EMPTY", "--inside", "dream", "--memory", "untrained"], "h is of the world model that dreams"),
        ("evaluate", ["EMPTY"], "no rollouts in"),
        ("report", ["EMPTY"], "cannot read"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tiny_run, tmp_path, monkeypatch, module, arguments, words):
    places = {"RUN": str(tiny_run), "EMPTY": str(tmp_path / "empty")}
    monkeypatch.setattr(sys, "argv", [module, *(places.get(a, a) for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        run(importlib.import_module(f"scripts.{module}").main)
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)
    assert re.search(words, str(ended.value))


def test_runs_are_gathered_into_one_record_and_picture(tiny_run, tmp_path):
    gathered = cli("summarise", str(tiny_run), "--out", str(tmp_path / "all.json"))
    assert gathered.returncode == 0, gathered.stderr
    assert json.loads((tmp_path / "all.json").read_text()) == [read_json(tiny_run / "evaluation.json")]
    assert cv2.imread(str(tmp_path / "all.png")) is not None


@pytest.mark.parametrize("command", ["summarise", "worth"])
def test_to_gather_no_runs_is_a_mistake(command):
    """What was gathered before stays as it is."""
    nothing = cli(command)
    assert nothing.returncode != 0
    assert "name at least one run's folder" in nothing.stdout + nothing.stderr


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_stopped_it_keeps_every_whole_episode_and_the_same_command_goes_on(tmp_path, number, to_all):
    """As a terminal stops it, its workers too, and as a cluster does, which knows only its own process."""
    gate = tmp_path / "the third pair of episodes waits while this file is here"
    gate.touch()
    trouble = json.dumps({"length": 30, "trouble": str(gate), "at": [4, 9]})
    command = [sys.executable, "-m", "scripts.collect", str(tmp_path), "--episodes", "6", "--num-envs", "2"]
    command += ["--backend", "async", "--env", "tests.pixel_env:tests/TroubledDot-v0", "--env-kwargs", trouble]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    give_up = time.monotonic() + 120
    while len(list((tmp_path / "rollouts").glob("episode-*"))) < 4 and time.monotonic() < give_up:
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "stages.json").read_text())["collect"]["seconds"] > 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left
    assert sorted(episode.seed for episode in RolloutStore(tmp_path / "rollouts")) == [0, 1, 2, 3]
    gate.unlink()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    store = RolloutStore(tmp_path / "rollouts")
    assert [episode.seed for episode in store] == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "stages.json").read_text())["collect"]["done"]


def test_a_failed_stage_leaves_a_finished_run_as_it_was(tiny_run):
    """The run's record still says done."""
    failed = cli("train_vae", str(tiny_run), "--device", "cuda")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert read_json(tiny_run / "stages.json")["train_vae"]["done"]
