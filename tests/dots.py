"""Recorded episodes of the dot environment, for the tests that need a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tests.pixel_env  # noqa: F401
from worldvae import FrameSpec, RolloutStore, make_vector_env, record
from worldvae.policies import random_policy

LARGE, SMALL = FrameSpec(), FrameSpec(32, 32)
"""Of a screen of 24 pixels; codecs of the smaller ones are trained in half the time."""


def record_dots(
    folder: Path,
    episodes: int,
    env_id: str = "tests/Dot-v0",
    env_kwargs: dict[str, Any] | None = None,
    frame: FrameSpec = LARGE,
) -> RolloutStore:
    """A store of 20-step episodes under random actions that last."""
    env = make_vector_env(env_id, 8, backend="sync", env_kwargs=env_kwargs)
    store = RolloutStore.create(
        folder, env_id=env_id, frame_spec=frame, action_space=env.single_action_space, env_kwargs=env_kwargs
    )
    policy = random_policy("correlated", env.single_action_space, 8, seed=0)
    for episode in record(env, policy, frame, range(episodes), "correlated"):
        store.append(episode)
    env.close()
    return store
