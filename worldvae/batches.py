"""Stores -> shuffled batches of frames and of sequences: seeded, and resumable at any step.

Batches are a pure function of (store, episodes, seed, budget, step): nothing needs saving to resume.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldvae.rollouts import RolloutStore

CPU = torch.device("cpu")
READERS = min(4, os.cpu_count() or 1)
"""Threads that read ahead. Several, since one verifies checksums more slowly than a good disk reads."""


def frame_batches(
    store: RolloutStore,
    episodes: Sequence[int],
    batch_size: int,
    seed: int,
    start: int = 0,
    budget_bytes: int = 4 << 30,
    device: torch.device = CPU,
    pairs: bool = False,
) -> Iterator[Tensor]:
    """Endless batches of frames, each epoch in a new order, from step ``start`` on.

    Where all frames fit into the budget they stay on the device and an epoch is one full shuffle.
    Elsewhere an epoch goes through windows of whole episodes in random order, each half the budget, and
    shuffles the frames within each; the next window is read while one is in use. Frames left over at a
    window's end (fewer than a batch) wait for the next epoch's order.

    Closing the iterator ends its threads; until then it holds its memory.

    Args:
        episodes: positions in the store to draw from.
        budget_bytes: memory for frames; two episodes may exceed it.
        device: where batches are wanted. On a GPU the window in use lies there, the next in pinned memory.
        pairs: with each frame the one before it in its episode (the first has itself).

    Yields:
        uint8 [batch_size, H, W, C] on ``device`` (fewer only where a window holds less than one batch), or
        [batch_size, 2, H, W, C]: a frame and the one before

    Raises:
        ValueError: no visible frames, or a batch size below 1.
        DamagedEpisode: at the window that holds it.
    """
    counts = dict(zip(episodes, store.visible_counts(episodes), strict=True))
    total = sum(counts.values())
    if batch_size < 1 or total == 0:
        raise ValueError(f"batches need episodes with frames and a size >= 1, got {total} frames and {batch_size}")
    budget = budget_bytes // math.prod(store.frame_spec.shape)
    room, load = (budget, _resident) if total <= budget else (budget // 2, _prefetched)
    windows = _windows(counts, batch_size, room, seed, start)
    with _Readers(store, counts) as readers:
        for frames, window in load(readers, windows, room, device):
            rows = torch.from_numpy(_with_previous(window, counts) if pairs else window.rows).to(device)
            for b in range(len(rows)):
                yield _gathered(frames, rows[b])


@dataclass(frozen=True)
class _Window:
    """Episodes that are in memory together.

    Attributes:
        episodes: positions in the store, ascending; their visible frames lie end to end.
        rows: int64 [batches, size], the frames of each batch.
    """

    episodes: list[int]
    rows: NDArray[np.int64]


def _with_previous(window: _Window, counts: Mapping[int, int]) -> NDArray[np.int64]:
    """The window's rows beside those of the frames before: int64 [batches, size, 2]."""
    lengths = [counts[e] for e in window.episodes]
    first = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    before = np.maximum(np.arange(sum(lengths)) - 1, first)
    return np.stack([window.rows, before[window.rows]], -1)


def _windows(counts: Mapping[int, int], batch_size: int, room: int, seed: int, start: int) -> Iterator[_Window]:
    """All that is still to come from step ``start`` on, worked out without reading a frame."""
    step, epoch = 0, 0
    while True:
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(sorted(counts)).tolist()
        for episodes in _cut(order, counts, room):
            count = sum(counts[e] for e in episodes)
            size = max(1, min(batch_size, count))
            rows = random.permutation(count)[: count - count % size].reshape(-1, size)
            to_come = rows[max(0, start - step) :]
            if len(to_come):
                yield _Window(sorted(episodes), to_come)
            step += len(rows)
        epoch += 1


def _cut(order: Sequence[int], counts: Mapping[int, int], room: int) -> Iterator[list[int]]:
    """Cuts the order into runs of episodes with at most ``room`` frames (at least one episode)."""
    run: list[int] = []
    held = 0
    for episode in order:
        if run and held + counts[episode] > room:
            yield run
            run, held = [], 0
        run.append(episode)
        held += counts[episode]
    yield run


Loaded = Iterator[tuple[Tensor, _Window]]
"""Windows and their frames: uint8 [>= count, H, W, C] on the device, valid until the next window."""


def _resident(readers: _Readers, windows: Iterator[_Window], room: int, device: torch.device) -> Loaded:
    """Each window is the whole, which is read once."""
    frames = readers.memory(room, device)
    readers.begin(sorted(readers.counts), frames)
    readers.wait()
    for window in windows:
        yield frames, window


def _prefetched(readers: _Readers, windows: Iterator[_Window], room: int, device: torch.device) -> Loaded:
    """Each window is read while the one before it is in use."""
    on_gpu = device.type != "cpu"
    in_use, spare = readers.memory(room, device), readers.memory(room, CPU, pinned=on_gpu)
    ahead = next(windows)
    readers.begin(ahead.episodes, spare)
    while True:
        window, ahead = ahead, next(windows)
        readers.wait()
        if on_gpu:
            in_use.copy_(spare)  # does not return before it is done, so that the spare can be written to
        else:
            in_use, spare = spare, in_use
        readers.begin(ahead.episodes, spare)
        yield in_use, window


def _gathered(frames: Tensor, rows: Tensor) -> Tensor:
    """The frames at int64 rows [B] or [B, 2]: a copy, on their device."""
    if frames.is_cpu:
        return torch.from_numpy(np.take(frames.numpy(), rows.numpy(), axis=0))  # see _Readers
    return frames[rows]


class _Readers:
    """Threads that copy episodes' visible frames into memory; they end with the context.

    On the CPU NumPy copies, as it does so on one thread: torch shares a copy among OpenMP threads, which
    wait for each other where readers and training keep the cores busy.
    """

    def __init__(self, store: RolloutStore, counts: Mapping[int, int]):
        self.store, self.counts = store, counts
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="frames")
        self._reading: list[Future[None]] = []

    def memory(self, room: int, device: torch.device, pinned: bool = False) -> Tensor:
        """Uninitialised uint8 [frames, H, W, C]: room for so many, or for the longest episode, or for all."""
        frames = min(max(room, *self.counts.values()), sum(self.counts.values()))
        shape = (frames, *self.store.frame_spec.shape)
        if pinned or device.type != "cpu":
            return torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
        return torch.from_numpy(np.empty(shape, np.uint8))  # NumPy asks the system for huge pages

    def begin(self, episodes: Sequence[int], into: Tensor) -> None:
        """Starts to lay the episodes' frames end to end."""
        ends = np.cumsum([self.counts[e] for e in episodes])
        parts = into[: ends[-1]].tensor_split(ends[:-1].tolist())
        self._reading = [self._pool.submit(self._copy, e, part) for e, part in zip(episodes, parts, strict=True)]

    def wait(self) -> None:
        """Until what was begun is done. Raises DamagedEpisode."""
        for episode in self._reading:
            episode.result()

    def _copy(self, episode: int, into: Tensor) -> None:
        frames = self.store.visible_frames(episode)
        if into.is_cpu:
            np.copyto(into.numpy(), frames)
        else:
            into.copy_(torch.from_numpy(frames))

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def sequence_batches(
    lengths: Sequence[int], batch_size: int, most_steps: int, seed: int, start: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Endless batches of sequences, each a piece of one episode, from step ``start`` on.

    Each epoch has every transition once. Episodes longer than ``most_steps`` are cut into pieces,
    elsewhere in each epoch; no piece reaches over an episode's end, and shorter ones are padded.

    Args:
        lengths: T of each episode; each has T + 1 rows, one a frame, in a table of all of them laid
            end to end.

    Yields:
        rows: int64 [B, T+1], each piece's frames, its last one again where padded.
        valid: bool [B, T], which transitions there are.

    Raises:
        ValueError: no transitions, or a size below 1.
    """
    if batch_size < 1 or most_steps < 1 or sum(lengths) == 0:
        raise ValueError(f"batches need transitions and sizes >= 1, got {sum(lengths)}, {batch_size}, {most_steps}")
    first_rows = np.cumsum([0, *(length + 1 for length in lengths[:-1])])
    step, epoch = 0, 0
    while True:
        random = np.random.default_rng((seed, epoch))
        pieces = random.permutation(_pieces(lengths, first_rows, most_steps, random))
        for b in range(0, len(pieces), batch_size):
            if step >= start:
                begin, end = pieces[b : b + batch_size].T
                yield padded_rows(begin, end - begin)
            step += 1
        epoch += 1


def padded_rows(first: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows [B, T+1] and valid [B, T] of pieces that begin at ``first`` [B] and have ``lengths`` [B]."""
    t = np.arange(lengths.max() + 1)
    return first[:, None] + np.minimum(t, lengths[:, None]), t[:-1] < lengths[:, None]


def _pieces(
    lengths: Sequence[int], first_rows: NDArray[np.int64], most_steps: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """int64 [pieces, 2]: first and last row of pieces of at most ``most_steps`` transitions."""
    pieces = []
    for first, length in zip(first_rows, lengths, strict=True):
        phase = random.integers(1, most_steps + 1) if length > most_steps else most_steps
        cuts = np.unique([0, *range(phase, length, most_steps), length])
        pieces.append(first + np.stack([cuts[:-1], cuts[1:]], 1))
    return np.concatenate(pieces)
