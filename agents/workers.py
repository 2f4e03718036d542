"""Worker processes that answer tasks, and are replaced when they raise, die or hang.

Evolution plays for hours in them; a lost worker costs its task's time, never the run, and is
always named. Knows nothing of what the tasks are.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
MakeWorker = Callable[[], Callable[[Task], Result]]

ATTEMPTS = 3
"""So often is a task tried, each time by a fresh worker."""

log = logging.getLogger(__name__)


class Workers(Generic[Task, Result]):
    """A pool of processes, as a context manager; leaving it ends them at once.

    They start with their first task and stay for all others.

    Args:
        make_worker: called once in each process, gives the function that answers tasks; it, tasks
            and results cross process borders, so they must be picklable.
        count: how many processes.
        timeout: seconds until a worker without an answer counts as hung; includes its start.
    """

    def __init__(self, make_worker: MakeWorker[Task, Result], count: int, timeout: float):
        if count < 1 or timeout <= 0:
            raise ValueError(f"workers need a count >= 1 and a timeout > 0, got {count}, {timeout}")
        self._workers = [_Worker(number, make_worker, timeout) for number in range(count)]

    @property
    def pids(self) -> list[int]:
        """Of the processes there are now."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def map(self, tasks: Sequence[Task]) -> list[Result]:
        """The tasks' results, in their order.

        Raises:
            RuntimeError: a task failed ``ATTEMPTS`` times; the pool is then good for nothing more.
        """
        waiting = deque(range(len(tasks)))
        failures: Counter[int] = Counter()
        results: dict[int, Result] = {}
        while len(results) < len(tasks):
            for worker in self._workers:
                if worker.task is None and waiting:
                    worker.begin(waiting[0], tasks[waiting.popleft()])
            for worker, task in self._finished():
                failure, result = worker.outcome()
                if failure is None:
                    results[task] = result
                    continue
                failures[task] += 1
                if failures[task] == ATTEMPTS:
                    raise RuntimeError(f"a task failed {ATTEMPTS} times; the last time {worker} {failure}")
                log.warning("%s %s; a new one does its task again", str(worker), failure)
                worker.stop()
                waiting.appendleft(task)
        return [results[i] for i in range(len(tasks))]

    def _finished(self) -> list[tuple[_Worker, int]]:
        """Waits for workers that answered, died or ran out of time; with their tasks' numbers."""
        busy = [(worker, worker.task) for worker in self._workers if worker.task is not None]
        seconds = min(worker.deadline for worker, _ in busy) - time.monotonic()
        ready = set(wait([end for worker, _ in busy for end in worker.ends], max(0.0, seconds)))
        now = time.monotonic()
        return [(worker, task) for worker, task in busy if ready & set(worker.ends) or worker.deadline <= now]


class _Worker:
    """One process and the parent's end of its pipe."""

    def __init__(self, number: int, make_worker: Callable[[], Callable[[Any], Any]], timeout: float):
        self.number, self.timeout = number, timeout
        self.task: int | None = None
        self.deadline = 0.0
        self._make_worker = make_worker
        self._process: Any = None

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self._process.pid})"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def ends(self) -> tuple[Connection, int]:
        """Ready when there is an answer, or when the process has ended."""
        return self._connection, self._process.sentinel

    def begin(self, number: int, task: Any) -> None:
        """Sends the task, to a new process where there is none."""
        if self._process is None:
            self._start()
        self.task, self.deadline = number, time.monotonic() + self.timeout
        # a process that hangs does not empty its pipe, and to wait for that would be to hang with it
        self._sender = threading.Thread(target=_send, args=(self._connection, task), daemon=True)
        self._sender.start()

    def outcome(self) -> tuple[str | None, Any]:
        """(what went wrong or None, the result) of the task, which is no longer this worker's."""
        self.task = None
        with suppress(EOFError, OSError):
            if self._connection.poll():
                return self._connection.recv()
        self._process.join(1)  # dying takes a moment
        code = self._process.exitcode
        if code is None:
            return f"gave no answer for {self.timeout:g} s", None
        return (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"), None

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        if self.pid is not None:
            self._process.kill()
            self._process.join()
            self._sender.join()
            self._connection.close()
        self._process = self.task = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork after OpenMP has run can hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._make_worker, theirs), daemon=True)
        resource_tracker.ensure_running()  # unblocks SIGINT, if the first process's start had to call it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the parent's
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()


def _send(connection: Connection, task: Any) -> None:
    with suppress(OSError):  # the process is dead, as its sentinel says
        connection.send(task)


def _serve(make_worker: Callable[[], Callable[[Any], Any]], connection: Connection) -> None:
    """The process: answers (None, result) or (what was raised, None) to each task."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = None
    with suppress(EOFError, OSError):  # the parent has gone
        while True:
            task = connection.recv()
            try:
                answer = answer or make_worker()
                result = answer(task)
            except Exception as error:
                connection.send((f"raised {type(error).__name__}: {error}", None))
            else:
                connection.send((None, result))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
