"""Several processes train one codec as one process would; when one dies, the others say so and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.dots import SMALL, record_dots
from worldvae import FrameVAE
from worldvae.checkpoint import load_tree
from worldvae.distributed import World
from worldvae.fit import read_log

ROOT = Path(__file__).parent.parent
TRAINING = ["--passes", "2", "--latent-size", "4", "--objective.sigma", "optimal", "--device", "cpu"]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "rollouts"
    record_dots(folder, episodes=16, frame=SMALL)
    return folder


def run_in(folder: Path, rollouts: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rollouts").symlink_to(rollouts)
    return folder


def command(processes: int, run: Path, *more: str) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *start, "-m", "scripts.train_vae", str(run), *TRAINING, *more]


def train(processes: int, run: Path, *more: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(processes, run, *more), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_learn_what_one_learns(tmp_path, rollouts):
    alone, together = (run_in(tmp_path / name, rollouts) for name in ("alone", "together"))
    train(1, alone, "--seed", "3")
    said = train(2, together, "--seed", "3")
    assert said.count("healthy:") == 1, "one process reports"
    logs = [read_log(run / "vae" / "metrics.jsonl") for run in (alone, together)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "kl", "mse", "held_out_loss"):
            assert two[name] == pytest.approx(one[name], rel=2e-3)  # sums in another order, over two passes
    codecs = [FrameVAE.load(run / "vae") for run in (alone, together)]
    for one, two in zip(*(codec.parameters() for codec in codecs), strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-2)


def test_when_a_process_is_killed_the_others_say_so_end_and_the_training_goes_on(tmp_path, rollouts):
    run, long = run_in(tmp_path, rollouts), ("--passes", "8")
    process = subprocess.Popen(command(2, run, *long), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        victim = _second_rank(process.pid, run / "vae" / "training.safetensors")
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "another process of this training died or was stopped" in said
    saved = load_tree(run / "vae" / "training.safetensors")["step"]
    before = [entry for entry in read_log(run / "vae" / "metrics.jsonl") if entry["step"] <= saved]
    train(2, run, *long)
    assert before
    assert read_log(run / "vae" / "metrics.jsonl")[: len(before)] == before


def _second_rank(launcher: int, checkpoint: Path) -> int:
    """Waits until the training writes checkpoints; the process id of its rank 1."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if not checkpoint.exists():
            continue
        for children in Path(f"/proc/{launcher}/task").glob("*/children"):
            for child in children.read_text().split():
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                if b"RANK=1" in environment:
                    return int(child)
    raise AssertionError("no second process within two minutes")


def test_parts_of_a_batch_are_equal_and_make_the_whole():
    batch = torch.arange(24).reshape(2, 12)
    parts = [World(rank, 4).part(batch, dim=1) for rank in range(4)]
    assert torch.equal(torch.cat(parts, 1), batch)
    with pytest.raises(ValueError, match="5 processes cannot share a batch of 12 equally"):
        World(0, 5).part(batch, dim=1)
