"""A store -> some of its frames in runs of neighbours, for measures that look at what moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldvae.frames import Frames
from worldvae.rollouts import RolloutStore

SHORTEST = 16
"""Frames of a run, where episodes have so many: fewer episodes are taken rather than shorter runs."""


@dataclass(frozen=True)
class Clips:
    """Runs of consecutive frames, one of each of some episodes, end to end.

    Attributes:
        frames: uint8 [B, H, W, C]
        episode: int64 [B], the episode's position in its store.
        t: int64 [B], which of the episode's frames it is.
    """

    frames: Frames
    episode: NDArray[np.int64]
    t: NDArray[np.int64]

    @property
    def runs(self) -> list[slice]:
        """The rows of each run."""
        cuts = [0, *(np.flatnonzero(np.diff(self.episode)) + 1).tolist(), len(self.episode)]
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def clips(store: RolloutStore, episodes: Sequence[int], most: int = 2048, seed: int = 0) -> Clips:
    """At most ``most`` (and as many as there are) visible frames, spread evenly over the episodes.

    Where an episode has more than its share, the run starts anywhere in it.

    Raises:
        ValueError: no episodes, or room for less than a run.
        DamagedEpisode
    """
    if not episodes or most < SHORTEST:
        raise ValueError(f"measuring needs episodes and at least {SHORTEST} frames, got {len(episodes)} and {most}")
    random = np.random.default_rng(seed)
    most_runs = max(1, most // SHORTEST)
    chosen = {episodes[i] for i in np.linspace(0, len(episodes) - 1, min(most_runs, len(episodes))).astype(int)}
    parts: list[tuple[Frames, NDArray[np.int64], NDArray[np.int64]]] = []
    for i in sorted(chosen, key=lambda i: (store.header(i)["length"], i)):
        episode = store[i]
        visible = np.flatnonzero(episode.visible)
        share = most // (len(chosen) - len(parts))  # what short episodes leave goes to the longer
        begin = random.integers(0, max(1, len(visible) - share + 1))
        t = visible[begin : begin + share]
        parts.append((episode.frames[t], np.full(len(t), i), t))
        most -= len(t)
    frames, positions, times = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Clips(frames, positions, times)
