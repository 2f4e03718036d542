"""Small bright dots that drift over a texture which itself scrolls: the objects a codec loses first.

Importing this module registers ``tests/MovingDots-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

SIZE = 64


class MovingDots(gymnasium.Env):
    """Up to ``most`` dots of 2x2 pixels, bouncing; ``info["objects"]`` has their middles, float32 [n, 2]."""

    observation_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = Discrete(2)

    def __init__(self, most: int = 3, length: int = 100):
        self.most, self.length = most, length
        y, x = np.mgrid[:SIZE, : 2 * SIZE]
        waves = 90 + 30 * np.sin(2 * np.pi * x / 32) * np.cos(2 * np.pi * y / 21)
        self.texture = np.stack([waves, 0.7 * waves, 0.4 * waves], -1).astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        count = self.np_random.integers(self.most + 1)
        self.middles = self.np_random.uniform(4, SIZE - 4, (count, 2))
        self.speeds = self.np_random.uniform(-2, 2, (count, 2))
        self.t = 0
        return self._observation()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.middles = self.middles + self.speeds
        outside = (self.middles < 3) | (self.middles > SIZE - 3)
        self.speeds[outside] *= -1
        self.middles = self.middles.clip(3, SIZE - 3)
        observation, info = self._observation()
        return observation, 0.0, False, self.t >= self.length, info

    def _observation(self) -> tuple[Any, dict[str, Any]]:
        screen = self.texture[:, self.t % SIZE :][:, :SIZE].copy()
        corners = self.middles.round().astype(int) - 1
        for x, y in corners:
            screen[y : y + 2, x : x + 2] = (250, 240, 230)
        return screen, {"objects": (corners + 1).astype(np.float32)}


gymnasium.register("tests/MovingDots-v0", entry_point=MovingDots)
