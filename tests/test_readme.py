"""The README is executed: Python blocks as they stand, shell blocks in preset tiny's sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = {
    "bash scripts/run.sh --preset takecover": "ln -s quick runs/takecover",  # tests/test_rounds.py has such a run
    "--agent runs/takecover/agent": "--agent runs/takecover/agent --episodes 2 --most-steps 20 --temperatures 1",
    "--play": "--play --steps 5",
    "bash scripts/run.sh": "bash scripts/run.sh --preset tiny --out runs/quick",
    "python -m": f"{sys.executable} -m",
    "--episodes 64": "--episodes 4",
    "--episodes 100": "--episodes 1 --max-episode-steps 100",
    "--max-episode-steps 400": "--max-episode-steps 60",
    "--passes 10": "--passes 1",
    "--learning.env-steps 200000": "--learning.env-steps 640",
    "--evolution.minutes 30": "--evolution.generations 1 --evolution.population 4 --evolution.select-episodes 1",
    "--evolution.patience 120": "--evolution.patience 40",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder that looks like the repository's root, where ``runs/`` can be filled."""
    folder = tmp_path_factory.mktemp("home")
    for name in (".git", ".venv", "agents", "scripts", "worldvae", "pyproject.toml"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def execute(command: list[str], home: Path) -> None:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shell_blocks_run(home):
    for block in blocks("bash"):
        for line in block.splitlines():
            command = line.split("#")[0].strip()
            if command in ("", "bash scripts/test.sh"):
                continue
            for written, tiny in TINY.items():
                command = command.replace(written, tiny)
            command = command.replace("--out runs/quick", f"--out {home}/runs/quick")
            execute(["bash", "-c", command], home)


def test_the_python_blocks_run_in_order(home):
    assert (home / "runs" / "quick" / "vae").exists(), "the shell blocks make what the Python blocks load"
    for block in blocks("python"):
        execute([sys.executable, "-W", "error::UserWarning:worldvae", "-c", block], home)


def test_every_file_that_the_readme_links_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
