"""How fast do frame batches come from a store that is larger than the memory they may use?

The loader alone, without training: batches of shuffled frames from noise on disk, page cache cold and
warm, in processes of their own whose memory is capped, beside what copying memory costs on the machine.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from tqdm import tqdm

from scripts import cli
from worldvae.batches import frame_batches
from worldvae.checkpoint import write_record
from worldvae.devices import on_threads
from worldvae.frames import FrameSpec
from worldvae.rollouts import Episode, RolloutStore

FRAME = FrameSpec()
FRAME_BYTES = int(np.prod(FRAME.shape))
LENGTH = 1000
"""Frames in an episode."""
BATCH = 128
LIBRARIES = 1 << 30
"""Bytes of a process's cap that are not the loader's: Python, torch, stacks of threads."""


def make_store(folder: Path, episodes: int) -> RolloutStore:
    """Noise, each episode's another; goes on where a store is that has fewer.

    Raises:
        ValueError: the disk has no space for it.
    """
    store = RolloutStore.create(folder, env_id="noise", frame_spec=FRAME, action_space=Discrete(2))
    missing = (episodes - len(store)) * LENGTH * FRAME_BYTES
    if missing > 0.95 * shutil.disk_usage(folder).free:
        raise ValueError(f"{folder} needs {missing / 1e9:.1f} GB more disk than is free: use --frames or --folder")
    noise = np.random.default_rng(0).integers(0, 256, (LENGTH, *FRAME.shape), np.uint8)
    nothing = np.zeros(LENGTH - 1, np.int64)
    for e in tqdm(range(len(store), episodes), desc="noise to disk", unit="episode"):
        frames, visible = noise ^ np.uint8(e % 256), np.ones(LENGTH, bool)
        store.append(Episode(frames, nothing, nothing.astype(np.float32), visible, False, True, seed=e))
    return store


def make_cold(store: RolloutStore) -> None:
    """Asks the system to forget the files' pages (they must be on disk, and mapped by nobody)."""
    os.sync()
    for index in store.indices:
        with open(store.episodes.file(index), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_warm(store: RolloutStore) -> None:
    """Reads all files once."""
    chunk = bytearray(8 << 20)
    for index in store.indices:
        with open(store.episodes.file(index), "rb", buffering=0) as file:
            while file.readinto(chunk):
                pass


def numbers(file: str) -> dict[str, int]:
    """The numbers of a file in /proc/self, by name."""
    lines = (line.split() for line in Path("/proc/self", file).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def passes(folder: Path, episodes: Sequence[int], budget: int, steps: int, cold: bool) -> list[tuple[float, ...]]:
    """Two runs of so many steps: GB/s, frames/s, GB from disk, peak MB that are the process's own and mapped files.

    The first reads every episode for the first time, which verifies it. This process's own memory (heaps,
    stacks, private mappings) is capped at the budget and what the libraries take.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (budget + LIBRARIES, budget + LIBRARIES))
    store = RolloutStore(folder)
    batches = frame_batches(store, episodes, BATCH, seed=0, budget_bytes=budget)
    results: list[tuple[float, ...]] = []
    for _ in range(2):
        if cold:
            make_cold(store)
        read, own, mapped, begin = numbers("io")["read_bytes"], 0, 0, time.perf_counter()
        for step, _ in enumerate(islice(batches, steps)):
            if step % 100 == 0:
                memory = numbers("status")
                own, mapped = max(own, memory["RssAnon"]), max(mapped, memory["RssFile"])
        frames_a_second = BATCH * steps / (time.perf_counter() - begin)
        from_disk = (numbers("io")["read_bytes"] - read) / 1e9
        results.append((frames_a_second * FRAME_BYTES / 1e9, frames_a_second, from_disk, own / 1e3, mapped / 1e3))
    return results


def in_a_process(*arguments: Any) -> list[tuple[float, ...]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(passes, *arguments).result()


def memcpy(threads: int, size: int = 1 << 29) -> float:
    """Best of several copies of a block larger than the caches, GB/s."""
    seconds = []
    with on_threads(threads):
        source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        for _ in range(7):
            begin = time.perf_counter()
            target.copy_(source)
            seconds.append(time.perf_counter() - begin)
    return size / min(seconds) / 1e9


def main(
    frames: int = 1_000_000,
    budget_mib: int = 1024,
    folder: Path = Path("runs/bench_loader"),
    out: Path = Path("benchmarks/loader.json"),
) -> None:
    """Measure the loader on so many frames on disk, which stay in the folder, within a budget of memory."""
    everything = range(frames // LENGTH)
    budget = budget_mib << 20
    store = make_store(folder, len(everything))
    if len(everything) * LENGTH * FRAME_BYTES <= budget:
        raise ValueError(f"{frames} frames fit into {budget_mib} MiB: use fewer MiB or more frames")
    copies = {f"memcpy, threads: {threads}": memcpy(threads) for threads in (1, 2)}
    steps = frames // BATCH
    cold = in_a_process(folder, everything, budget, steps, True)
    make_warm(store)
    warm = in_a_process(folder, everything, budget, steps, False)
    fitting = everything[: budget // (LENGTH * FRAME_BYTES)]
    resident = in_a_process(folder, fitting, budget, steps, False)
    names = [
        "cold, verifying",
        "cold, verified",
        "warm, verifying",
        "warm, verified",
        "resident, with loading",
        "resident",
    ]
    limit = max(copies.values())
    rows: list[tuple[Any, ...]] = [
        ("pages", "GB/s", "% of memcpy", "frames/s", "GB from disk", "peak MB own", "peak MB mapped"),
        *((name, rate, 100 * rate / limit, rate * 1e9 / FRAME_BYTES, 0.0, "", "") for name, rate in copies.items()),
        *(
            (name, row[0], 100 * row[0] / limit, *row[1:])
            for name, row in zip(names, cold + warm + resident, strict=True)
        ),
    ]
    print(cli.table(rows))
    size = {"frames": frames, "budget_mib": budget_mib, "cap_mib": (budget + LIBRARIES) >> 20, "batch": BATCH}
    write_record(out, {**cli.provenance(), **size, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
