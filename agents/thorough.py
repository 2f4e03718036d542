"""CarRacing-v3 whose rewards tell at once what a missed tile costs, for learning; agents are judged on CarRacing-v3.

There a lap ends when every tile has been visited and is paid for ending early, so one missed tile costs 28 points
(benchmarks/LOG.md, "what a lap lacks"), hundreds of steps after the curve that was cut. Here the car is told as it
leaves a tile behind. Track, physics and frames are those of CarRacing-v3 with the same seed.
Id: ``agents.thorough:ThoroughCarRacing-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

MISSED = 5.0
"""Points that a tile costs when it is left behind."""
BEHIND = 4
"""Tiles behind the foremost one: what has not been visited there is missed. The car is three tiles long."""
LEAP = 30
"""Tiles ahead of the foremost one at which the car is thought to have followed the track."""


class Thorough(gymnasium.Wrapper):
    """Takes ``MISSED`` from the reward for every tile that is left behind unvisited, once."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._foremost = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._foremost = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        visited = np.array([tile.road_visited for tile in self.unwrapped.road])  # type: ignore[attr-defined]
        judged = max(0, self._foremost - BEHIND)
        self._foremost += int(np.flatnonzero(visited[self._foremost :][:LEAP])[-1:].sum())
        missed = int((~visited[judged : max(0, self._foremost - BEHIND)]).sum())
        return observation, float(reward) - MISSED * missed, terminated, truncated, info


def make(**kwargs: Any) -> gymnasium.Env:
    return Thorough(gymnasium.make("CarRacing-v3", **kwargs))


gymnasium.register("ThoroughCarRacing-v0", entry_point="agents.thorough:make")
