"""What does collecting cost beside stepping the environments alone?

Bare is stepping and resetting with actions drawn beforehand. Collecting is ``record`` into a
``RolloutStore`` with the same actions: pixels to frames, frames to disk. Neither pays for a policy.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from scripts import cli
from worldvae.checkpoint import write_record
from worldvae.environments import Backend, make_vector_env
from worldvae.frames import FrameSpec
from worldvae.policies import random_policy
from worldvae.record import record
from worldvae.rollouts import RolloutStore

FRAME = FrameSpec(crop=(0, 12, 0, 0))
SETTINGS: list[tuple[Backend, int, int]] = [("envpool", 16, 1), ("envpool", 16, 4), ("async", 2, 1), ("async", 4, 4)]


class Replayed:
    """A ``BehaviourPolicy`` of actions [T, N, A] drawn beforehand."""

    def __init__(self, actions: NDArray[Any]):
        self._actions = iter(actions)

    def reset(self, mask: NDArray[np.bool_]) -> None: ...

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        return next(self._actions)


def bare(env: VectorEnv, actions: NDArray[Any]) -> int:
    """Steps and resets, nothing else; returns env steps."""
    env_steps = 0
    env.reset()
    for actions_t in actions:
        *_, terminated, truncated, info = env.step(actions_t)
        env_steps += int(info["env_steps"].sum())
        if (terminated | truncated).any():
            env.reset(options={"reset_mask": terminated | truncated})
    return env_steps


def collecting(env: VectorEnv, actions: NDArray[Any], episodes: int, folder: str) -> int:
    """Records and stores whole episodes; returns their env steps."""
    env_steps, space = 0, env.single_action_space
    store = RolloutStore.create(folder, env_id="CarRacing-v3", frame_spec=FRAME, action_space=space)
    for episode in store.append_all(record(env, Replayed(actions), FRAME, range(episodes))):
        env_steps += episode.env_steps
    return env_steps


def measure(env: VectorEnv, repeat: int, rounds: int, episodes: int, env_steps: int) -> tuple[float, float]:
    """Median env steps/s bare and collecting; the two take turns, and turns in going first."""
    total = episodes * env.num_envs
    length = episodes * -(-env_steps // repeat)
    policy = random_policy("correlated", env.single_action_space, env.num_envs, seed=0)
    actions = np.stack([policy.act(np.empty(0)) for _ in range(2 * length)])  # should an episode end early
    bare(env, actions[:10])
    rates: dict[str, list[float]] = {"bare": [], "collecting": []}
    for i in range(rounds):
        for name in list(rates)[:: 1 if i % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                n = bare(env, actions[:length]) if name == "bare" else collecting(env, actions, total, folder)
                rates[name].append(n / (time.perf_counter() - begin))
    return float(np.median(rates["bare"])), float(np.median(rates["collecting"]))


def main(rounds: int = 5, episodes: int = 4, env_steps: int = 400, out: Path = Path("benchmarks/collect.json")) -> None:
    """Measure what collecting CarRacing-v3 costs, in so many rounds of episodes of env_steps."""
    rows: list[tuple[Any, ...]] = [("backend", "envs", "repeat", "bare steps/s", "collecting", "overhead %")]
    for backend, n, repeat in SETTINGS:
        env = make_vector_env("CarRacing-v3", n, backend=backend, action_repeat=repeat, max_episode_steps=env_steps)
        alone, stored = measure(env, repeat, rounds, episodes, env_steps)
        env.close()
        rows.append((backend, n, repeat, alone, stored, 100 * (alone / stored - 1)))
    print(cli.table(rows))
    write_record(out, {**cli.provenance(), "rows": rows})


if __name__ == "__main__":
    cli.run(main)
