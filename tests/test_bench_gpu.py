"""The GPU benchmark runs everywhere: every path of it, in seconds, without a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from scripts.bench_gpu import Switches

ROOT = Path(__file__).parent.parent


def test_each_row_switches_one_more_thing_on():
    rows = [on for _, on in Switches.ladder()]
    counts = [sum(vars(on).values()) for on in rows]
    assert counts == list(range(len(vars(rows[0])) + 1))


def test_the_whole_script_runs_without_a_gpu(tmp_path):
    for name in ("worldvae", "agents", "scripts", ".git"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "benchmarks").mkdir()
    command = ["bash", "scripts/bench_gpu.sh", "--device", "cpu", "--tiny"]
    environment = {**os.environ, "PYTHON": sys.executable, "TORCHDYNAMO_DISABLE": "1"}  # minutes of compiling
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "benchmarks" / "gpu.json").read_text())
    rows = [row for name in ("compact", "paper") for part in ("training", "encoding") for row in told[name][part]]
    assert len(rows) == 2 * (len(Switches.ladder()) + 3) + 2 * 2 * 3  # a batch size; two of frames, three ways
    assert all(0 < row["frames_per_second"] < math.inf and 0 < row["of_roofline"] < math.inf for row in rows)
    for name in ("compact", "paper"):
        errors = told[name]["relative_error_to_float64"]
        assert errors["float32: loss"] < 1e-5
        assert errors["float32: gradient"] < 1e-3
    assert (tmp_path / "benchmarks" / "agents_gpu.json").exists()
    assert (tmp_path / "benchmarks" / "dream_gpu.json").exists()
