"""Rollouts -> shuffled frame batches: seeded, resumable at any step, larger than memory.

Batches are a pure function of (store, episodes, seed, step): nothing needs saving to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

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
