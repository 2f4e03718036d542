"""What is lost when a stage is killed, interrupted, out of space, or run twice at a time?

The project's own commands are hit at random moments, from their start to their last write, and go
on from what is left; at their end they are compared with unbroken runs. A loss is whatever was whole
and is gone or damaged, a start that failed or went back behind its checkpoint, another result at the
end, a process left over.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from scripts import cli
from scripts.chaos_stages import MAKERS, STAGES, Stage, differences, inspect, losses
from worldvae.checkpoint import write_record

ROOT = Path(__file__).parents[1]
Section = Literal[
    "collect",
    "encode",
    "train_vae",
    "train_dynamics",
    "train_agent",
    "evolve",
    "disk_full",
    "two_writers",
    "ctrl_c",
]


@dataclass(frozen=True)
class Outcome:
    """What came of a stage in a section.

    Attributes:
        trials: how often it was hit while it ran.
        resumed: starts that found something kept, and got further.
        lost: each loss in words.
    """

    trials: int
    resumed: int
    lost: list[str]


@dataclass(frozen=True)
class Blow:
    """A way to hit a running command.

    Attributes:
        word: what was done, in the past tense.
        signal: its number.
        to_all: to its workers too, as a terminal or an out-of-memory killer of containers does.
        code: the right exit code afterwards.
        earliest: seconds after the start. Python itself, until it runs our first line, answers Ctrl-C in its own way.
    """

    word: str
    signal: signal.Signals
    to_all: bool
    code: int
    earliest: float = 0.0


KILL = Blow("killed", signal.SIGKILL, True, -signal.SIGKILL)
KILL_MAIN = Blow("killed alone", signal.SIGKILL, False, -signal.SIGKILL)
CTRL_C = Blow("interrupted", signal.SIGINT, True, 130, earliest=0.5)


class Attempt:
    """A command that runs in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[str]):
        self._process, self._errors = process, errors

    def code(self, within: float) -> int | None:
        """Its exit code; None where it has not ended after so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(within)
        return None

    def hit(self, blow: Blow, after: float, patience: float) -> int | None:
        """Its exit code after the blow, or without it where it ended before."""
        code = self.code(after)
        if code is not None:
            return code
        (os.killpg if blow.to_all else os.kill)(self._process.pid, blow.signal)
        return self.code(patience)

    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def left_over(self, within: float) -> list[int]:
        """The processes of its session that live after so many seconds."""
        end = time.monotonic() + within
        while (living := _members(self._process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        return living

    def complaints(self, code: int | None, right: int, within: float = 10) -> list[str]:
        """What is wrong with how it ended; its workers may take ``within`` seconds more."""
        stderr = self.stderr()
        lines = stderr.strip().splitlines() or [""]
        found = [] if code == right else [f"exit code {code}, not {right}: {lines[-1]}"]
        if "Traceback" in stderr and right >= 0:  # Gymnasium's workers tell of a killed parent by one
            found.append(f"a traceback: {lines[-1]}")
        if code == 1 and not lines[-1].startswith("error: "):
            found.append(f"no sentence at the end of stderr: {lines[-1]}")
        if pids := self.left_over(within):
            found.append(f"{len(pids)} of its processes live on")
        return found


@contextmanager
def started(command: Sequence[str], most_bytes: int | None = None) -> Iterator[Attempt]:
    """Starts a command that may write no file larger than ``most_bytes``; leaves none of its processes."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C, and so would theirs
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        environment = {**os.environ, "TQDM_DISABLE": "1"} if most_bytes is not None else None  # a bar fills a file, too
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=before,
        )
        try:
            yield Attempt(process, errors)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _members(session: int) -> list[int]:
    """The session's living processes (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


class Bench:
    """Unbroken runs, what they took, and new folders for runs that are not to stay so."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.unbroken = folder / "unbroken"
        self.unbroken.mkdir()
        self.seconds: dict[str, float] = {}

    def make(self, stage: Stage) -> None:
        """Runs a stage, and those that it needs, from their start to their end."""
        for name in stage.needs:
            self.make(STAGES[MAKERS[name]])
        if stage.name in self.seconds:
            return
        run, begin = self.unbroken / stage.name, time.monotonic()
        stage.prepare(run, self.unbroken)
        with started(stage.command(run)) as attempt:
            wrong = attempt.complaints(attempt.code(3600), 0)
        self.seconds[stage.name] = time.monotonic() - begin
        wrong += differences(stage, run, run)
        if wrong:
            raise RuntimeError(f"{stage.name} fails although nobody breaks it: {'; '.join(wrong)}")

    def patience(self, stage: Stage) -> float:
        """Seconds after which it hangs."""
        return 120 + 10 * self.seconds[stage.name]

    def fresh(self, stage: Stage) -> Path:
        """A new folder where the stage can begin; the one before goes."""
        run = self._folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        stage.prepare(run, self.unbroken)
        return run

    def complete(self, stage: Stage, run: Path) -> list[str]:
        """Lets the stage go on to its end; says what is wrong then."""
        with started(stage.command(run)) as attempt:
            wrong = attempt.complaints(attempt.code(self.patience(stage)), 0)
        wrong += differences(stage, run, self.unbroken / stage.name)
        return [f"completed: {why}" for why in wrong]

    def size(self, stage: Stage) -> tuple[int, int]:
        """Bytes on disk of the stage's run before it and after."""
        run = self._folder / "measured"
        stage.prepare(run, self.unbroken)
        before = _blocks(run)
        shutil.rmtree(run)
        return before, _blocks(self.unbroken / stage.name)


def _blocks(folder: Path) -> int:
    """Bytes on disk, in blocks of 4096."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def strike(bench: Bench, stage: Stage, blows: Sequence[Blow], seed: int) -> Outcome:
    """Hits the stage at random moments, each time where the last start left off; then lets it end."""
    resumed, lost = 0, []
    rng = np.random.default_rng((seed, list(STAGES).index(stage.name)))
    run = bench.fresh(stage)
    kept = inspect(run)
    for blow in tqdm(blows, desc=f"{blows[0].word} {stage.name}", unit="trial", leave=False, dynamic_ncols=True):
        hit = False
        while not hit:  # a command that ended before was no trial
            after = rng.uniform(blow.earliest, bench.seconds[stage.name])
            hit, wrong = strike_once(bench, stage, run, blow, after)
            now = inspect(run)
            wrong += losses(kept, now)
            resumed += not wrong and 0 < kept.progress(stage.folder) < now.progress(stage.folder)
            what = f"{blow.word} after {after:.2f} s" if hit else "ended by itself"
            lost += [f"{what}: {why}" for why in dict.fromkeys(wrong)]
            if wrong or not hit:
                run = bench.fresh(stage)
                now = inspect(run)
            kept = now
    return Outcome(len(blows), resumed, lost + bench.complete(stage, run))


def strike_once(bench: Bench, stage: Stage, run: Path, blow: Blow, after: float) -> tuple[bool, list[str]]:
    """Starts the stage and hits it; says whether it still ran, and what is wrong with its end."""
    with started(stage.command(run)) as attempt:
        code = attempt.hit(blow, after, bench.patience(stage))
        if code != 0:
            return True, attempt.complaints(code, blow.code)
        return False, attempt.complaints(code, 0) + differences(stage, run, bench.unbroken / stage.name)


def file_limit(bench: Bench, stage: Stage) -> Outcome:
    """No file may grow to the size of the largest that the stage writes."""
    sizes = [path.stat().st_size for path in (bench.unbroken / stage.name / stage.folder).rglob("*")]
    lost = out_of_space(bench, stage, bench.fresh(stage), int(0.9 * max(sizes)))
    return Outcome(1, int(not lost), lost)


def small_disk(bench: Bench, stage: Stage) -> Outcome:
    """A disk with too little room, then with enough; no trial where none can be mounted."""
    before, after = bench.size(stage)
    with tempfile.TemporaryDirectory() as folder:
        if not _mounted(folder, f"size={int(before + stage.room * (after - before))}"):
            return Outcome(0, 0, [])
        try:
            run = Path(folder, "run")
            shutil.copytree(bench.fresh(stage), run)
            lost = out_of_space(bench, stage, run, None, lambda: _mounted(folder, "remount,size=2g"))
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    return Outcome(1, int(not lost), lost)


def out_of_space(
    bench: Bench, stage: Stage, run: Path, most_bytes: int | None, make_room: Callable[[], object] = lambda: None
) -> list[str]:
    """The stage must end in a sentence, lose nothing, and go on when there is room."""
    kept = inspect(run)
    with started(stage.command(run), most_bytes) as attempt:
        wrong = attempt.complaints(attempt.code(bench.patience(stage)), 1)
        if "no space left for" not in attempt.stderr():
            wrong.append("it does not say that there is no space left")
    wrong += losses(kept, inspect(run))
    make_room()
    return wrong + bench.complete(stage, run)


def _mounted(folder: str, options: str) -> bool:
    if not shutil.which("mount"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def two_writers(bench: Bench, stage: Stage) -> Outcome:
    """The same command twice at the same moment: one is refused in a sentence, or both are right."""
    run, lost = bench.fresh(stage), []
    with started(stage.command(run)) as one, started(stage.command(run)) as two:
        codes = {attempt: attempt.code(bench.patience(stage)) for attempt in (one, two)}
        refused = [attempt for attempt, code in codes.items() if code == 1]
        for attempt, code in codes.items():
            lost += attempt.complaints(code, 1 if refused == [attempt] else 0)
        if refused and "another process" not in refused[0].stderr():
            lost.append(f"refused for another reason: {refused[0].stderr()[-300:]}")
    return Outcome(1, 0, lost + differences(stage, run, bench.unbroken / stage.name))


Work = Callable[[Bench, Stage], Outcome]
TWICE = ("collect", "train_vae")
"""Stages that are started twice at a time."""
TOLD = ("trials", "resumed", "losses", "seconds")


def jobs_of(trials: int, stages: Sequence[Section], seed: int) -> list[tuple[str, Stage, Work]]:
    """(section, stage, what to do with it)"""
    named = [stage for name, stage in STAGES.items() if name in stages]
    every = named or list(STAGES.values())
    killing = partial(strike, blows=[KILL_MAIN if i % 4 == 1 else KILL for i in range(trials)], seed=seed)
    interrupting = partial(strike, blows=[CTRL_C] * max(1, trials // 4), seed=seed)
    jobs: list[tuple[str, Stage, Work]] = [("killed", stage, killing) for stage in named]
    if "ctrl_c" in stages:
        jobs += [("interrupted", stage, interrupting) for stage in every]
    if "disk_full" in stages:
        jobs += [("small_disk", stage, small_disk) for stage in every]
        # environments' processes share their memory through files larger than an episode
        jobs += [("file_limit", stage, file_limit) for stage in every if stage.name != "collect"]
    if "two_writers" in stages:
        jobs += [("two_writers", stage, two_writers) for stage in every if stage.name in TWICE]
    return jobs


def main(
    trials: int = 20,
    out: Path = Path("benchmarks/chaos.json"),
    stages: tuple[Section, ...] = get_args(Section),
    seed: int = 0,
) -> None:
    """Break the stages at random moments and say what was lost; exit code 1 where something was.

    Args:
        trials: kills of each stage; a quarter as many times it is interrupted (Ctrl-C).
        out: the record.
        stages: what to break, and how; disk_full, two_writers and ctrl_c are for the named stages,
            or for all where none is named.
        seed: of the moments.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1, got {trials}")
    record: dict[str, dict[str, Any]] = {}
    rows: list[tuple[Any, ...]] = [("", *TOLD)]
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for section, stage, work in tqdm(jobs_of(trials, stages, seed), unit="job", dynamic_ncols=True):
            bench.make(stage)
            begin, outcome = time.monotonic(), work(bench, stage)
            told = {**asdict(outcome), "losses": len(outcome.lost), "seconds": time.monotonic() - begin}
            record.setdefault(section, {})[stage.name] = told
            rows.append((f"{section} {stage.name}", *(told[name] for name in TOLD)))
            lost += [f"{section} {stage.name}: {why}" for why in outcome.lost]
            write_record(out, {**cli.provenance(), "losses": len(lost), **record})
    print("\n".join([cli.table(rows), *lost]))
    if lost:
        raise RuntimeError(f"{len(lost)} losses, see {out}")


if __name__ == "__main__":
    cli.run(main)
