"""Small pixel environments of our own: deterministic, instant, and learned in seconds.

A white dot on a black screen is moved towards a green column. Importing this module registers
``tests/Dot-v0``, ``tests/DiscreteDot-v0`` and ``tests/RenderOnly-v0``; any constructor argument
can be given to ``gymnasium.make``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

SIZE = 24
"""Height and width of the screen in pixels."""
STRIDE = 3.0
"""Pixels that the dot moves under a full action."""


class DotEnv(gymnasium.Env):
    """Reward 1 while the dot is within 2 pixels of the target column, else 0.

    Args:
        length: steps of an episode, which then is truncated.
        discrete: actions are Discrete(3): left, stay, right; else Box(-1, 1, (1,)).
        ends: an episode of ``length`` steps is terminated instead.
        blank_last: an episode's last frame is all zero, as some emulators do.
        dictionary: observations are {"screen": image, "speed": float32 [1]}.
        target: the column in pixels; drawn anew for each episode by default.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        length: int = 20,
        discrete: bool = False,
        ends: bool = False,
        blank_last: bool = False,
        dictionary: bool = False,
        target: float | None = None,
        render_mode: str | None = None,
    ):
        self.length, self.ends, self.blank_last, self.dictionary = length, ends, blank_last, dictionary
        self.fixed_target = target
        self.render_mode = render_mode
        self.action_space = Discrete(3) if discrete else Box(-1, 1, (1,), np.float32)
        screen = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = (
            Dict({"screen": screen, "speed": Box(-1, 1, (1,), np.float32)}) if dictionary else screen
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.dot, self.target = self.np_random.uniform(2, SIZE - 3, 2)
        self.target = self.target if self.fixed_target is None else self.fixed_target
        self.t, self.speed = 0, 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.speed = float(action) - 1 if isinstance(self.action_space, Discrete) else float(np.clip(action, -1, 1)[0])
        self.dot = float(np.clip(self.dot + STRIDE * self.speed, 2, SIZE - 3))
        self.t += 1
        over = self.t >= self.length
        reward = float(abs(self.dot - self.target) <= 2)
        return self._observation(blank=over and self.blank_last), reward, over and self.ends, over and not self.ends, {}

    def render(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]"""
        screen = np.zeros((SIZE, SIZE, 3), np.uint8)
        target, dot, middle = round(self.target), round(self.dot), SIZE // 2
        screen[:, target - 1 : target + 2] = (0, 160, 0)
        screen[middle - 2 : middle + 3, dot - 2 : dot + 3] = 255
        return screen

    def _observation(self, blank: bool = False) -> Any:
        screen = np.zeros((SIZE, SIZE, 3), np.uint8) if blank else self.render()
        return {"screen": screen, "speed": np.array([self.speed], np.float32)} if self.dictionary else screen


class RenderOnlyEnv(DotEnv):
    """The same task seen as a vector (dot and target in pixels): its pixels have to be rendered."""

    def __init__(self, length: int = 20, render_mode: str | None = None):
        super().__init__(length, render_mode=render_mode)
        self.observation_space = Box(0, SIZE, (2,), np.float32)

    def _observation(self, blank: bool = False) -> NDArray[np.float32]:
        return np.array([self.dot, self.target], np.float32)


gymnasium.register("tests/Dot-v0", entry_point=DotEnv)
gymnasium.register("tests/DiscreteDot-v0", entry_point=DotEnv, kwargs={"discrete": True})
gymnasium.register("tests/RenderOnly-v0", entry_point=RenderOnlyEnv)
