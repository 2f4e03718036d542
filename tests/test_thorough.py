"""CarRacing that tells of missed tiles is the same task, and what it tells is right."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from agents.thorough import BEHIND, MISSED

pytest.importorskip("Box2D")


def drives(steps: int, visited: range = range(0)) -> tuple[np.ndarray, np.ndarray]:
    """What the thorough and the official environment give on the same drive: rewards [steps, 2], frames [2, ..].

    Args:
        visited: tiles that are said to be visited after the first half.
    """
    envs = [gymnasium.make(name) for name in ("agents.thorough:ThoroughCarRacing-v0", "CarRacing-v3")]
    for env in envs:
        env.reset(seed=3)
    rewards = []
    for t in range(steps):
        if t == steps // 2:
            for env in envs:
                for i in visited:
                    env.unwrapped.road[i].road_visited = True
        played = [env.step(np.array([0.15 * np.sin(t / 9), 0.3, 0.0], np.float32)) for env in envs]
        rewards.append([reward for _, reward, *_ in played])
    for env in envs:
        env.close()
    return np.array(rewards), np.stack([frame for frame, *_ in played])


def test_nothing_else_than_a_missed_tile_costs():
    rewards, (frame, official) = drives(40)
    np.testing.assert_array_equal(rewards[:, 0], rewards[:, 1])
    np.testing.assert_array_equal(frame, official)


@pytest.mark.parametrize("gap", [1, 3])
def test_each_tile_left_behind_costs_once(gap):
    onward = range(10 + gap, 10 + gap + 2 * BEHIND)  # after 40 steps the car is at tile 5: 6 to 9 + gap are left out
    rewards, _ = drives(80, onward)
    missed = rewards[:, 1] - rewards[:, 0]
    assert missed[:40].sum() == 0
    assert missed.sum() == pytest.approx(MISSED * (4 + gap))
    assert (missed != 0).sum() == 1
