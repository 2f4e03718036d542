"""Worker processes: whatever befalls one, the results are right, in order, and its fate is told."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.workers import Workers


@dataclass(frozen=True)
class Squares:
    """Workers that square numbers; on the number 3 they come to grief, once or always."""

    folder: Path
    grief: str = ""
    always: bool = False

    def __call__(self):
        return self.square

    def square(self, x):
        (self.folder / f"pid-{os.getpid()}").touch()
        happened = self.folder / "happened"
        if x == 3 and self.grief and (self.always or not happened.exists()):
            happened.touch()
            GRIEFS[self.grief]()
        time.sleep(0.02 * ((7 * x) % 5))
        return x * x


def raises():
    raise ValueError("three is too many")


GRIEFS = {
    "raise": raises,
    "exit": lambda: os._exit(7),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: time.sleep(1000),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
TOLD = {
    "raise": "raised ValueError: three is too many",
    "exit": "exited with code 7",
    "sigkill": "was killed by SIGKILL",
    "segfault": "was killed by SIGSEGV",
    "hang": "gave no answer for 3 s",
    "stop": "gave no answer for 3 s",
}


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(folder):
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def gone(pids, within=10.0):
    end = time.monotonic() + within
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_running, pids))


def test_results_come_in_the_order_of_their_tasks_and_workers_stay(tmp_path):
    with Workers(Squares(tmp_path), 2, timeout=60) as workers:
        assert workers.map(range(20)) == [x * x for x in range(20)]
        assert workers.map([5, 4]) == [25, 16]
        assert workers.map([]) == []
        assert sorted(workers.pids) == sorted(pids_in(tmp_path))
        assert len(workers.pids) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("grief", GRIEFS)
def test_a_lost_worker_is_named_and_replaced_and_its_task_done_again(grief, tmp_path, caplog):
    with Workers(Squares(tmp_path, grief), 2, timeout=3 if grief in ("hang", "stop") else 60) as workers:
        assert workers.map(range(8)) == [x * x for x in range(8)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    told = re.fullmatch(r"worker [01] \(pid (\d+)\) (.*); a new one does its task again", record.getMessage())
    assert told is not None
    assert int(told[1]) in pids_in(tmp_path)
    assert told[2] == TOLD[grief]
    assert gone(pids_in(tmp_path))


def test_a_worker_that_dies_idle_is_replaced_too(tmp_path, caplog):
    with Workers(Squares(tmp_path), 1, timeout=60) as workers:
        workers.map([1])
        os.kill(workers.pids[0], signal.SIGKILL)
        assert gone(workers.pids)
        assert workers.map([2]) == [4]
    assert "was killed by SIGKILL" in caplog.text


def test_a_task_that_always_fails_ends_with_a_sentence(tmp_path):
    sentence = r"a task failed 3 times; the last time worker [01] \(pid \d+\) raised ValueError: three is too many"
    with pytest.raises(RuntimeError, match=sentence), Workers(Squares(tmp_path, "raise", True), 2, 60) as workers:
        workers.map(range(5))
    assert gone(pids_in(tmp_path))


def test_a_worker_that_cannot_be_made_is_an_error_too():
    with pytest.raises(RuntimeError, match="raised ZeroDivisionError"), Workers(_impossible, 1, 60) as workers:
        workers.map([1])


def _impossible():
    return 1 / 0


def test_a_task_larger_than_a_pipe_does_not_block_on_a_worker_that_hangs(tmp_path):
    with Workers(_frozen, 1, timeout=0.5) as workers, pytest.raises(RuntimeError, match=r"gave no answer for 0\.5 s"):
        workers.map([bytes(10_000_000)])


def _frozen():
    time.sleep(1000)


def start_hanging(folder):
    """Another process whose two workers hang."""
    program = (
        "from pathlib import Path\nfrom tests.test_workers import Squares\nfrom agents.workers import Workers\n"
        f"if __name__ == '__main__':\n with Workers(Squares(Path({str(folder)!r}), 'hang', True), 2, 600) as w:\n"
        "  w.map([3, 3])\n"
    )
    script = folder / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while len(pids_in(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(pids_in(folder)) == 2
    return parent


def test_ctrl_c_ends_at_once_and_leaves_no_process(tmp_path):
    parent = start_hanging(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode != 0
    assert errors.count("Traceback") == 1  # the parent's own
    assert gone(pids_in(tmp_path))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent = start_hanging(tmp_path)
    parent.kill()
    parent.communicate(timeout=20)
    assert gone(pids_in(tmp_path))
