"""Killed, cut, fed garbage: what becomes of every kind of file that the project keeps.

Reading a damaged file gives the error that names it or exactly what was written; nothing in a file
runs; a folder has one writer at a time; a full disk ends in one sentence and loses nothing.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.run_folder import RunFolder
from tests.dots import record_dots
from tests.test_checkpoint import small_model
from tests.test_fit import Regression, train
from tests.test_rollouts import BIG, create, episode, run_python
from tests.test_rollouts import assert_same as assert_same_episode
from worldvae import FrameVAE, FrameVAEConfig, LatentStore, RolloutStore, encode
from worldvae.checkpoint import (
    CheckpointError,
    load_model,
    load_tree,
    only_writer,
    read_json,
    save_model,
    save_tree,
    write_atomically,
    write_json,
)
from worldvae.fit import FitConfig, fit, read_log
from worldvae.latents import quantise

ROOT = Path(__file__).parents[1]
impatient = partial(only_writer, patience=0.1)


@dataclass(frozen=True)
class Kept:
    """A kind of file: its name, what writes it among others into a folder, and what reads it."""

    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]


def write_rollouts(folder: Path) -> None:
    store = create(folder)
    for seed in range(3):
        store.append(episode(seed))


def write_latents(folder: Path) -> None:
    write_json(folder / "latents.json", {"format_version": 1, "kind": "latents", "precision": "uint8"})
    store = LatentStore(folder)
    for i in range(3):
        codes = np.random.default_rng(i).normal(size=(5, 2)).astype(np.float32)
        kept = {"actions": np.zeros((4, 1)), "rewards": np.zeros(4, np.float32), "visible": np.ones(5, bool)}
        tensors = {**quantise("mean", codes, "uint8"), **quantise("logvar", codes, "float32"), **kept}
        store.episodes.write(i, tensors, {"terminated": True, "truncated": False, "seed": i, "length": 4})


def write_model(folder: Path) -> None:
    save_model(folder, "codec", small_model(), {"crop": [0, 12, 0, 0], "action_repeat": 4, "beta": 0.5, "key": None})


def write_tree(folder: Path) -> None:
    tree = {"step": 7, "state": {0: torch.arange(9.0), 1: [torch.ones(2, dtype=torch.int64), "adam"]}}
    save_tree(folder / "training.safetensors", tree)


def write_stages(folder: Path) -> None:
    for name in ("collect", "train_vae"):
        with RunFolder(folder).stage(name):
            pass


def read_episodes(folder: Path) -> Any:
    """The second episode in both ways there are to read it; the others must be whole."""
    store = RolloutStore(folder)
    for i in (0, 2):
        assert_same_episode(store[i], episode(i))
    return store[1], RolloutStore(folder).visible_frames(1)


def read_headers(folder: Path) -> Any:
    """What is told without reading frames."""
    store = RolloutStore(folder)
    assert [store.header(i)["seed"] for i in (0, 2)] == [0, 2]
    return store.header(1), store.seeds, store.env_steps


def read_latent_episodes(folder: Path) -> Any:
    store = LatentStore(folder)
    assert len([store[i] for i in (0, 2)]) == 2
    return store[1]


KINDS = {
    "episode": Kept("episode-000001.safetensors", write_rollouts, read_episodes),
    "header": Kept("episode-000001.safetensors", write_rollouts, read_headers),
    "rollouts": Kept("rollouts.json", write_rollouts, lambda f: RolloutStore(f).manifest),
    "latent episode": Kept("episode-000001.safetensors", write_latents, read_latent_episodes),
    "latents": Kept("latents.json", write_latents, lambda f: LatentStore(f).manifest),
    "model": Kept("model.safetensors", write_model, partial(load_model, kind="codec")),
    "config": Kept("config.json", write_model, lambda f: read_json(f / "config.json")),
    "training": Kept("training.safetensors", write_tree, lambda f: load_tree(f / "training.safetensors")),
    "stages": Kept("stages.json", write_stages, lambda f: RunFolder(f).stages),
    "metrics": Kept("metrics.jsonl", lambda f: train(f) and None, lambda f: read_log(f / "metrics.jsonl")),
}
TENSORS = [name for name, kept in KINDS.items() if kept.file.endswith(".safetensors")]


def plain(value: Any) -> Any:
    """The same with everything in it comparable by ==, to the byte."""
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Example:
    """A written folder, and of the file in question its bytes and what they say."""

    folder: Path
    kept: Kept
    whole: bytes
    content: Any

    @property
    def path(self) -> Path:
        return self.folder / self.kept.file


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder, kept = tmp_path_factory.mktemp("written"), KINDS[request.param]
    kept.write(folder)
    return Example(folder, kept, (folder / kept.file).read_bytes(), plain(kept.read(folder)))


def assert_named_or_unharmed(written: Example, damaged: bytes, lost: int | None = None) -> None:
    """A log may lack its end, so many entries: a killed writer may not have written it."""
    written.path.write_bytes(damaged)
    try:
        content = plain(written.kept.read(written.folder))
    except CheckpointError as error:
        if written.kept.file not in str(error):
            raise
    else:
        whole = written.content
        if written.kept.file == "metrics.jsonl":
            assert lost is None or len(content) >= len(whole) - lost
            whole = whole[: len(content)]
        assert content == whole


def place(written: Example, data: st.DataObject) -> int:
    """Any place in the file, its beginning (headers) as often as all the rest."""
    end = len(written.whole)
    return data.draw(st.integers(0, min(end, 1000) - 1) | st.integers(0, end - 1))


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_byte_is_told_by_the_files_name_or_does_no_harm(written: Example, data: st.DataObject) -> None:
    flipped = bytearray(written.whole)
    flipped[place(written, data)] ^= data.draw(st.sampled_from([1 << bit for bit in range(8)]) | st.integers(1, 255))
    assert_named_or_unharmed(written, flipped, lost=1)


@given(data=st.data())
def test_a_cut_file_is_told_by_its_name(written: Example, data: st.DataObject) -> None:
    assert_named_or_unharmed(written, written.whole[: place(written, data)])


@given(tail=st.binary(min_size=1, max_size=40) | st.sampled_from([b"\n", b"}\n", b"\0" * 4096]))
def test_bytes_appended_to_a_file_are_told_or_do_no_harm(written: Example, tail: bytes) -> None:
    assert_named_or_unharmed(written, written.whole + tail)


@given(garbage=st.binary(max_size=400))
@example(b"")
@example(b"\0" * 100_000)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xff" * 8 + b"{}")  # safetensors: a header of 2^64 - 1 bytes
@example(b"\x02" + b"\0" * 7 + b"{}")  # safetensors: nothing in it
def test_garbage_is_told_by_the_files_name(written: Example, garbage: bytes) -> None:
    assert_named_or_unharmed(written, garbage)


@pytest.mark.parametrize(
    ("written", "other"),
    [(one, two) for one, two in itertools.permutations(TENSORS, 2) if KINDS[one].write is not KINDS[two].write],
    indirect=["written"],
)
def test_another_kind_of_tensors_in_a_files_place_is_told_by_its_name(
    written: Example, tmp_path: Path, other: str
) -> None:
    KINDS[other].write(tmp_path)
    written.path.write_bytes((tmp_path / KINDS[other].file).read_bytes())
    with pytest.raises(CheckpointError, match=written.kept.file):
        written.kept.read(written.folder)


@pytest.mark.parametrize("written", TENSORS, indirect=True)
@pytest.mark.parametrize("dtype", ["F4", "F8_E4M3", "F8_E8M0", "BF16", "F64", "C64", "BOOL", "U128"])
def test_tensors_that_claim_another_type_are_told_by_the_files_name(written: Example, dtype: str) -> None:
    end = 8 + int.from_bytes(written.whole[:8], "little")
    for match in re.finditer(rb'(?<="dtype":")\w+', written.whole[:end]):
        header = written.whole[8 : match.start()] + dtype.encode() + written.whole[match.end() : end]
        assert_named_or_unharmed(written, len(header).to_bytes(8, "little") + header + written.whole[end:])


def test_a_folder_in_a_files_place_is_told_by_its_name(written: Example) -> None:
    written.path.unlink()
    written.path.mkdir()
    try:
        with pytest.raises(CheckpointError, match=written.kept.file):
            written.kept.read(written.folder)
    finally:
        written.path.rmdir()


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("dump", [pickle.dumps, partial(pickle.dumps, protocol=0), torch_saved])
def test_no_file_can_run_code(written: Example, tmp_path: Path, dump: Callable[[Any], bytes]) -> None:
    marker = tmp_path / "marker"
    evil = dump(Malicious(marker))
    (torch.load(io.BytesIO(evil), weights_only=False) if dump is torch_saved else pickle.loads(evil)).close()
    assert marker.exists(), "no malicious file: the test shows nothing"
    marker.unlink()
    assert_named_or_unharmed(written, evil)
    if written.kept.file != "metrics.jsonl":  # one line without an end is what a killed writer leaves
        with pytest.raises(CheckpointError, match=written.kept.file):
            written.kept.read(written.folder)
    assert not marker.exists()


# One writer at a time --------------------------------------------------------------------------

APPEND = """
import sys
from pathlib import Path
from tests.test_rollouts import create, episode

store, first = create(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for seed in range(first, first + 20):
    store.append(episode(seed, length=1 + seed % 7))
"""

HOLD = """
import os, sys, time
from pathlib import Path
from worldvae.checkpoint import only_writer

folder = Path(sys.argv[1])
with only_writer(folder):
    (folder / f".state.{os.getpid()}.tmp").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_that_append_lose_and_mix_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPEND, str(tmp_path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, first], cwd=ROOT, **pipes) for first in ("0", "100")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    store = RolloutStore(tmp_path)
    assert store.indices == list(range(40))
    seeds = [e.seed for e in store]
    assert [seed for seed in seeds if seed < 100] == list(range(20))
    assert [seed for seed in seeds if seed >= 100] == list(range(100, 120))
    for e in store:
        assert_same_episode(e, episode(e.seed, length=1 + e.seed % 7))


def test_a_killed_holder_blocks_nobody_and_its_leftovers_go(tmp_path: Path) -> None:
    holder = run_python(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"another process is writing to {tmp_path}: wait"), impatient(tmp_path):
        pass
    assert len(list(tmp_path.glob(".state.*.tmp"))) == 1  # its writer lives
    with impatient(tmp_path, ".another.lock"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with only_writer(tmp_path):
        assert list(tmp_path.glob(".state.*.tmp")) == []


def test_two_trainings_in_one_folder_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldvae.fit.only_writer", impatient)
    model = Regression()

    def step_while_another_begins(batch: Any) -> Any:
        with pytest.raises(CheckpointError, match=f"another process is writing to {tmp_path}"):
            train(tmp_path)
        return model.step(batch)

    fit(step_while_another_begins, model.batches, model, FitConfig(2), tmp_path)
    assert [entry["step"] for entry in read_log(tmp_path / "metrics.jsonl")] == [2]


def test_two_encodings_into_one_folder_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldvae.latents.only_writer", impatient)
    FrameVAE(FrameVAEConfig(latent_size=2)).save(tmp_path / "vae")
    store = record_dots(tmp_path / "rollouts", episodes=1)
    with only_writer(tmp_path / "latents"), pytest.raises(CheckpointError, match="another process is writing to"):
        encode(store, FrameVAE.load(tmp_path / "vae"), tmp_path / "latents")


def test_a_stage_runs_once_at_a_time_and_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.run_folder.only_writer", impatient)
    run = RunFolder(tmp_path / "run")
    with run.stage("collect"):
        with pytest.raises(CheckpointError, match=f"another process is writing to {run.path}"), run.stage("collect"):
            pass
        with run.stage("train_vae"):
            pass
    assert run.is_done("collect")
    assert run.is_done("train_vae")


def test_a_temporary_file_of_a_living_writer_or_of_another_kind_stays(tmp_path: Path) -> None:
    kept = {f".a.{os.getpid()}.tmp", ".b.tmp", "c.1.tmp"}
    for name in kept:
        (tmp_path / name).write_text("")
    (tmp_path / ".d.999999999.tmp").write_text("")
    with only_writer(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} - {".lock"} == kept


# A full disk -----------------------------------------------------------------------------------


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from tests.test_damage import temporaries
from tests.test_fit import train
from tests.test_rollouts import BIG, create, episode
from worldvae.checkpoint import CheckpointError, save_tree

folder, what, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
work = {
    "append": lambda: create(folder, frame_spec=BIG).append(episode(0, 20, BIG)),
    "save_tree": lambda: save_tree(folder / "state", {"x": torch.zeros(10**6)}),
    "log": lambda: train(folder),
}
try:
    work[what]()
except CheckpointError as error:
    print(error, temporaries(folder))
"""


@pytest.mark.parametrize(
    ("what", "limit", "file"),
    [("append", 10**6, "episode-000000.safetensors"), ("save_tree", 10**6, "state"), ("log", 300, "metrics.jsonl")],
)
def test_a_file_that_grows_too_large_is_told_in_a_sentence(tmp_path: Path, what: str, limit: int, file: str) -> None:
    out, errors = run_python(LIMITED, tmp_path, what, limit).communicate(timeout=60)
    assert out == f"no space left for {tmp_path / file}: free some and resume []\n"
    assert "Traceback" not in errors


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MB, where the system lets us have one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filler


FULL = "no space left for .*{}: free some and resume"


def test_a_full_disk_keeps_every_whole_episode_and_goes_on_when_space_is_made(small_disk: Path) -> None:
    folder = small_disk / "rollouts"
    store = create(folder, frame_spec=BIG)
    store.append(episode(0, 3, BIG))
    filler = fill(small_disk)
    with pytest.raises(CheckpointError, match=FULL.format("episode-000001.safetensors")):
        store.append(episode(1, 3, BIG))
    assert temporaries(small_disk) == []
    assert len(store) == len(RolloutStore(folder)) == 1
    filler.unlink()
    store.append(episode(2, 3, BIG))
    for e, seed in zip(RolloutStore(folder), (0, 2), strict=True):
        assert_same_episode(e, episode(seed, 3, BIG))


def test_a_full_disk_keeps_the_checkpoint_before(small_disk: Path) -> None:
    write_tree(small_disk)
    before = plain(load_tree(small_disk / "training.safetensors"))
    fill(small_disk)
    with pytest.raises(CheckpointError, match=FULL.format("training.safetensors")):
        save_tree(small_disk / "training.safetensors", {"x": torch.zeros(10**4)})
    assert plain(load_tree(small_disk / "training.safetensors")) == before
    assert temporaries(small_disk) == []


@pytest.mark.parametrize("at_step", [0, 12])
def test_a_disk_that_fills_up_while_training_ends_it_in_a_sentence(
    small_disk: Path, tmp_path: Path, at_step: int
) -> None:
    folder, model = small_disk / "run", Regression()

    def step(batch: Any) -> Any:
        if model.steps == at_step:
            fill(small_disk)
        return model.step(batch)

    if at_step == 0:
        fill(small_disk)
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match=FULL.format("")):
        fit(step, model.batches, model, FitConfig(30_000, 5, 10), folder)
    assert threading.active_count() == threads
    assert temporaries(small_disk) == []
    (small_disk / "filler").unlink()
    _, resumed = train(folder)
    _, unbroken = train(tmp_path / "unbroken")
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in unbroken]
    assert read_log(folder / "metrics.jsonl") == resumed


def test_a_folder_that_may_only_be_read_can_be_read_and_says_so_when_written(small_disk: Path) -> None:
    write_rollouts(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = create(small_disk)
    assert [e.seed for e in store] == [0, 1, 2]
    with pytest.raises(CheckpointError, match=f"cannot write {small_disk}: Read-only file system"):
        store.append(episode(3))
    with pytest.raises(CheckpointError, match="Read-only file system"):
        write_atomically(small_disk / "file", b"")


# At the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("encode", "rollouts/episode-000001.safetensors"),
        ("encode", "vae/model.safetensors"),
        ("train_vae", "rollouts/rollouts.json"),
        ("train_vae", "vae/training.safetensors"),
        ("collect", "stages.json"),
    ],
)
def test_a_command_on_a_damaged_file_ends_in_one_line(tmp_path: Path, module: str, file: str) -> None:
    run = RunFolder(tmp_path)
    write_stages(run.path)
    record_dots(run.rollouts, episodes=3)
    FrameVAE(FrameVAEConfig(latent_size=2)).save(run.vae)
    write_tree(run.vae)
    damaged = bytearray((run.path / file).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (run.path / file).write_bytes(damaged)
    command = [sys.executable, "-m", f"scripts.{module}", str(run.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert str(run.path / file) in line


def test_an_edited_setting_is_not_believed(tmp_path: Path) -> None:
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "action_repeat": 5}))
    with pytest.raises(CheckpointError, match="edited by hand"):
        read_json(tmp_path / "config.json")
