"""Stores -> shuffled batches of frames and of sequences: seeded, and resumable at any step.

Batches are a pure function of (store, episodes, seed, step): nothing needs saving to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from worldvae.frames import Frames
from worldvae.rollouts import RolloutStore


def frame_batches(
    store: RolloutStore,
    episodes: Sequence[int],
    batch_size: int,
    seed: int,
    start: int = 0,
    window_bytes: int = 4 << 30,
) -> Iterator[Frames]:
    """Endless batches of frames, each epoch in a new order, from step ``start`` on.

    An epoch goes through the episodes in random order, as many at once as ``window_bytes`` hold,
    and shuffles the frames within that window: one full shuffle where everything fits. Frames left
    over at a window's end (fewer than a batch) wait for the next epoch's order.

    Args:
        episodes: positions in the store to draw from.
        window_bytes: memory for frames; a single episode may exceed it.

    Yields:
        uint8 [batch_size, H, W, C] (fewer only where a window holds less than one batch)

    Raises:
        ValueError: no episodes, or a batch size below 1.
    """
    if batch_size < 1 or len(episodes) == 0:
        raise ValueError(f"batches need episodes and a size >= 1, got {len(episodes)} and {batch_size}")
    lengths = {e: int(store.episodes.read(store.indices[e], ("visible",))[0]["visible"].sum()) for e in episodes}
    frame_bytes = int(np.prod(store.frame_spec.shape))
    step, epoch = 0, 0
    resident: Frames | None = None
    while True:
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(np.sort(np.asarray(episodes))).tolist()
        windows = list(_windows(order, lengths, window_bytes // frame_bytes))
        for window in windows:
            count = sum(lengths[e] for e in window)
            size = min(batch_size, count)
            shuffled = random.permutation(count)
            batches = count // size
            if step + batches > start:
                if len(windows) > 1 or resident is None:  # sorted: a lone window stays as it is
                    resident = np.concatenate([store.visible_frames(e) for e in sorted(window)])
                for b in range(max(0, start - step), batches):
                    yield resident[shuffled[b * size : (b + 1) * size]]
            step += batches
        epoch += 1


def _windows(order: Sequence[int], lengths: dict[int, int], capacity: int) -> Iterator[list[int]]:
    """Cuts the order into runs of episodes with at most ``capacity`` frames (at least one episode)."""
    window: list[int] = []
    held = 0
    for episode in order:
        if window and held + lengths[episode] > capacity:
            yield window
            window, held = [], 0
        window.append(int(episode))
        held += lengths[episode]
    yield window


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
