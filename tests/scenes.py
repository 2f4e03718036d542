"""Drawn episodes without an environment: a wide bar that slides, and a dot that wanders; their state is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from worldvae import Episode, FrameSpec, RolloutStore

SIDE = 32
"""Height and width of a frame in pixels."""


def scene_episode(seed: int, dot: int, steps: int = 31) -> tuple[Episode, dict[str, NDArray[np.float64]]]:
    """One episode, and the columns of bar and dot in each of its frames [T+1]; ``dot`` is its side in pixels."""
    random = np.random.default_rng(seed)
    bar = 10 + 6 * np.sin(random.uniform(0, 6.3) + 0.4 * np.arange(steps + 1))
    walk = random.uniform(0, SIDE) + random.normal(0, 2, steps + 1).cumsum()
    x = np.abs((walk - 1) % (2 * (SIDE - 8)) - (SIDE - 8)) + 1  # mirrored at the edges
    frames = np.full((steps + 1, SIDE, SIDE, 3), 25, np.uint8)
    for t, frame in enumerate(frames):
        left, column = round(bar[t]), round(x[t])
        frame[:, left : left + 10] = (60, 90, 200)
        frame[20 : 20 + dot, column : column + dot] = 255
    actions, rewards, visible = np.zeros((steps, 1), np.float32), np.zeros(steps, np.float32), np.ones(steps + 1, bool)
    return Episode(frames, actions, rewards, visible, False, True, seed), {"bar": bar, "dot": x}


def scene_store(folder: Path, episodes: int, dot: int) -> tuple[RolloutStore, dict[str, NDArray[np.float64]]]:
    """A store of such episodes, and their state for all its frames end to end."""
    store = empty_store(folder)
    drawn = [scene_episode(seed, dot) for seed in range(episodes)]
    for episode, _ in drawn:
        store.append(episode)
    return store, {name: np.concatenate([state[name] for _, state in drawn]) for name in ("bar", "dot")}


def empty_store(folder: Path) -> RolloutStore:
    spec, actions = FrameSpec(SIDE, SIDE), Box(-1, 1, (1,), np.float32)
    return RolloutStore.create(folder, env_id="tests/Scene", frame_spec=spec, action_space=actions)
