"""One training loop for everything: the VAE, latent dynamics, agents.

``fit`` calls ``step`` on batches, writes metrics and checkpoints, shows progress, and can be
interrupted and resumed to the same result. What a step does and what a state holds is the
caller's; this module knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor
from tqdm import tqdm

from worldvae.checkpoint import (
    CheckpointError,
    load_tree,
    only_writer,
    save_tree,
    sealed,
    unsealed,
    write_atomically,
    writing,
)
from worldvae.failures import EnvironmentFailed
from worldvae.interrupts import Interrupts

Batch = TypeVar("Batch")
Metrics = dict[str, float]


class State(Protocol):
    """All that training changes: ``state_dict`` is a tree of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FitConfig:
    """When to log, to checkpoint and to stop.

    Attributes:
        steps: how many steps there are.
        log_every, checkpoint_every: in steps.
        seconds: stop earlier after so much training (such a run is not reproducible to the byte).
    """

    steps: int
    log_every: int = 100
    checkpoint_every: int = 1000
    seconds: float | None = None


def fit(
    step: Callable[[Batch], dict[str, Tensor]],
    batches: Callable[[int], Iterator[Batch]],
    state: State,
    config: FitConfig,
    folder: Path,
    *,
    name: str = "training",
    settings: Mapping[str, Any] | None = None,
    observe: Callable[[], Metrics] | None = None,
    leads: bool = True,
) -> list[Metrics]:
    """Trains until ``config.steps``, going on from ``folder``'s checkpoint if there is one.

    The state that it ends with is the same however often it is interrupted; a log entry's means are of the steps
    since the last one or since it went on.

    Args:
        step: learns from one batch, returns scalar tensors (read only when logged: no sync).
        batches: from a step number to the batches from there on.
        folder: gets ``metrics.jsonl``, TensorBoard events where installed, and the checkpoint.
        settings: JSON values, under which alone the training goes on (``settled``).
        observe: more numbers for each log entry, such as a held-out measurement.
        leads: false where another process of the same training does all that: reading the checkpoint is
            left, and stepping.

    Returns:
        The log: one dictionary an entry, each with ``step`` and ``seconds``.

    Raises:
        CheckpointError: another process trains in this folder, what it began there has other settings, its files are
            damaged, or the disk is full.
        FloatingPointError: the loss is no longer finite; such a state is not saved.
        KeyboardInterrupt, EnvironmentFailed: after the last whole step was saved, if one was under way at a second
            Ctrl-C, without saving.
    """
    with only_writer(folder) if leads else contextlib.nullcontext():
        checkpoint, log = folder / "training.safetensors", _Log(folder) if leads else None
        done, elapsed = 0, 0.0
        if checkpoint.exists():
            saved = load_tree(checkpoint)
            done, elapsed = saved["step"], saved["seconds"]
            _check_settings(saved.get("settings"), settings, checkpoint)
            _restore(state, saved["state"], checkpoint)
        if log is not None:
            log.keep_until(done)
        begin = time.monotonic() - elapsed

        sums: dict[str, Tensor] = {}
        since = done

        def means() -> Metrics:
            """Of what was told since the last log entry."""
            told = {key: (total / (done - since)).item() for key, total in sums.items()}
            _check_finite(told, done)
            return told

        def save() -> None:
            means()  # what is broken is not worth keeping
            if leads:
                told = {"step": done, "seconds": time.monotonic() - begin, "settings": settings}
                save_tree(checkpoint, {**told, "state": state.state_dict()})

        stream = batches(done) if done < config.steps else iter(())
        look = {"desc": name, "unit": "step", "dynamic_ncols": True, "mininterval": 1, "disable": not leads}
        bar = tqdm(total=config.steps, initial=done, **look)
        finished = done >= config.steps
        whole = True
        try:
            with Interrupts(deferred=config.checkpoint_every > 1) as interrupts:  # else nothing is lost by them
                while not finished:
                    batch = next(stream)
                    whole = False
                    for key, value in step(batch).items():
                        sums[key] = sums[key] + value if key in sums else value
                    done += 1
                    bar.update()
                    finished = done == config.steps or _out_of_time(config, begin)
                    if log is not None and (done % config.log_every == 0 or finished):
                        told, seconds = means(), time.monotonic() - begin
                        entry = {"step": done, "seconds": seconds, **told, **(observe() if observe else {})}
                        log.add(entry)
                        bar.set_postfix(_in_short(entry))
                        sums, since = {}, done
                    if done % config.checkpoint_every == 0:
                        save()
                    whole = True
                    interrupts.check()
        except (KeyboardInterrupt, EnvironmentFailed):
            if whole:
                save()
            bar.write(f"stopped at step {done}; the same command goes on from {'there' if whole else 'the checkpoint'}")
            raise
        finally:
            bar.close()
            getattr(stream, "close", bool)()  # its threads and environments end here, not when it is forgotten
        save()
        return log.entries if log is not None else []


def read_log(path: Path) -> list[Metrics]:
    """The entries of a ``metrics.jsonl``; a killed writer's cut last line is left out.

    Raises:
        CheckpointError: it cannot be read, or a line is damaged; says which.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(unsealed(line))
        except ValueError as error:
            raise CheckpointError(f"line {number} of {path} is damaged ({error}): delete that line") from error
    return entries


def settled(config: Any, but: Collection[str]) -> dict[str, Any]:
    """A dataclass's values as JSON gives them back, ``but`` those that may change when training goes on."""
    told: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return {name: value for name, value in told.items() if name not in but}


def _check_settings(saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None, checkpoint: Path) -> None:
    """Checkpoints from before settings were kept are believed."""
    if saved is None or now is None:
        return
    changed = sorted(name for name in {*saved, *now} if saved.get(name) != now.get(name))
    if changed:
        raise CheckpointError(
            f"{checkpoint} was written under other settings ({', '.join(changed)}): go on with those, or begin in "
            "another folder"
        )


def _restore(state: State, saved: dict[str, Any], checkpoint: Path) -> None:
    try:
        state.load_state_dict(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint} was written under other settings: go on with those, or begin in another folder "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _in_short(entry: Metrics) -> dict[str, str]:
    return {key: f"{value:.4g}" for key, value in entry.items() if key not in ("step", "seconds")}


def _out_of_time(config: FitConfig, begin: float) -> bool:
    return config.seconds is not None and time.monotonic() - begin > config.seconds


def _check_finite(means: Metrics, step: int) -> None:
    broken = [key for key, value in means.items() if value != value or abs(value) == float("inf")]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} is no longer finite at step {step}: begin in another folder at a lower learning rate "
            "(the checkpoint here is from before)"
        )


class _Log:
    """metrics.jsonl, one sealed entry a line, and TensorBoard events where tensorboard is installed."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.entries: list[Metrics] = []
        self._board: _Board | None = None
        with contextlib.suppress(ImportError):
            self._board = _Board(folder)

    def keep_until(self, step: int) -> None:
        """Drops what was logged after the checkpoint: it is about to be lived again."""
        logged = read_log(self.path) if self.path.exists() else []
        self.entries = [entry for entry in logged if entry["step"] <= step]
        write_atomically(self.path, "".join(map(_line, self.entries)).encode())

    def add(self, entry: Metrics) -> None:
        self.entries.append(entry)
        with writing(self.path), open(self.path, "a") as file:
            file.write(_line(entry))
        if self._board is not None:
            self._board.add(entry)


def _line(entry: Metrics) -> str:
    return json.dumps(sealed(entry)) + "\n"


class _Board:
    """TensorBoard events, written as they come: on a full disk SummaryWriter's thread dies with a traceback."""

    def __init__(self, folder: Path):
        """Raises ImportError where there is no tensorboard."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._writer = Event, Summary, RecordWriter
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, entry: Metrics) -> None:
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in entry.items()]
        self._append(self._event(wall_time=time.time(), step=int(entry["step"]), summary=self._summary(value=values)))

    def _append(self, event: Any) -> None:
        with writing(self.path), open(self.path, "ab") as file:
            self._writer(file).write(event.SerializeToString())
