"""Small pixel environments of our own: deterministic, instant, and learned in seconds.

A white dot on a black screen is moved towards a green column. Importing this module registers
``tests/Dot-v0``, ``tests/DiscreteDot-v0``, ``tests/RenderOnly-v0`` and ``tests/TroubledDot-v0``; any
constructor argument can be given to ``gymnasium.make``.
"""

from __future__ import annotations

import builtins
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from numpy.typing import NDArray

SIZE = 24
"""Height and width of the screen in pixels."""
STRIDE = 3.0
"""Pixels that the dot moves under a full action."""
ODD_ACTIONS: dict[str, gymnasium.Space] = {
    "start": Discrete(3, start=-1),
    "several": MultiDiscrete([3, 2]),
    "matrix": Box(-1, 1, (2, 2), np.float32),
    "float64": Box(np.array([-1.0, 0.1]), np.array([1.0, 0.3]), dtype=np.float64),
    "unbounded": Box(-np.inf, np.inf, (1,), np.float32),
}
"""Odd but legal; an action's first number moves the dot."""


class DotEnv(gymnasium.Env):
    """Reward 1 while the dot is within 2 pixels of the target column, else 0.

    Args:
        length: steps of an episode, which then is truncated.
        discrete: actions are Discrete(3): left, stay, right; else Box(-1, 1, (1,)).
        ends: an episode of ``length`` steps is terminated instead.
        blank_last: an episode's last frame is all zero, as some emulators do.
        dictionary: observations are {"screen": image, "speed": float32 [1]}.
        target: the column in pixels; drawn anew for each episode by default.
        actions: a key of ``ODD_ACTIONS``, instead.
        screen: shape of the image, at least ``SIZE`` high and wide: [H, W] or [H, W, 1] (grey) or
            [H, W, 3]; what is beyond ``SIZE`` stays black.
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
        actions: str | None = None,
        screen: tuple[int, ...] = (SIZE, SIZE, 3),
    ):
        self.length, self.ends, self.blank_last, self.dictionary = length, ends, blank_last, dictionary
        self.fixed_target = target
        self.render_mode = render_mode
        self.action_space = Discrete(3) if discrete else Box(-1, 1, (1,), np.float32)
        self.action_space = ODD_ACTIONS[actions] if actions else self.action_space
        self.screen = tuple(screen)
        image = Box(0, 255, self.screen, np.uint8)
        self.observation_space = Dict({"screen": image, "speed": Box(-1, 1, (1,), np.float32)}) if dictionary else image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.dot, self.target = self.np_random.uniform(2, SIZE - 3, 2)
        self.target = self.target if self.fixed_target is None else self.fixed_target
        self.t, self.speed = 0, 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.speed = float(np.clip(np.ravel(action)[0] - self._standing_still(), -1, 1))
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

    def _standing_still(self) -> int:
        """The first number of the action that does not move the dot."""
        if isinstance(self.action_space, Discrete):
            return int(self.action_space.start) + 1
        return 1 if isinstance(self.action_space, MultiDiscrete) else 0

    def _observation(self, blank: bool = False) -> Any:
        screen = np.zeros((*self.screen[:2], 3), np.uint8)
        screen[:SIZE, :SIZE] = 0 if blank else self.render()
        screen = screen if self.screen[2:] == (3,) else screen[..., 1].reshape(self.screen)
        return {"screen": screen, "speed": np.array([self.speed], np.float32)} if self.dictionary else screen


class RenderOnlyEnv(DotEnv):
    """The same task seen as a vector (dot and target in pixels): its pixels have to be rendered.

    ``renders`` pixels, or ``nothing`` (None), or ``never`` says that it could.
    """

    def __init__(self, length: int = 20, render_mode: str | None = None, renders: str = "pixels"):
        super().__init__(length, render_mode=render_mode)
        self.observation_space = Box(0, SIZE, (2,), np.float32)
        self.renders = renders
        if renders == "never":
            self.metadata = {"render_modes": []}

    def render(self) -> Any:
        return super().render() if self.renders == "pixels" else None

    def _observation(self, blank: bool = False) -> NDArray[np.float32]:
        return np.array([self.dot, self.target], np.float32)


class Peculiar(Exception):
    """Cannot be sent to another process (it is not made of its text alone), nor %-formatted."""

    def __init__(self, part: str, share: int):
        super().__init__(f"{share}% of\nthe {part}")


class TroubledDotEnv(DotEnv):
    """The same task, with trouble at step ``at[1]`` (0: its reset) of the episode of seed ``at[0]``.

    ``trouble`` is the name of an exception, ``killed`` (its process is), ``misshapen`` (an
    observation), a number that is the reward, or the path of a file: it waits until that is gone.
    """

    def __init__(self, trouble: str | float = "RuntimeError", at: tuple[int, int] = (0, 1), **kwargs: Any):
        super().__init__(**kwargs)
        self.trouble, self.at = trouble, tuple(at)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed = seed
        observation, info = super().reset(seed=seed, options=options)
        return self._troubled(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *ends, info = super().step(action)
        reward = self.trouble if (self.seed, self.t) == self.at and isinstance(self.trouble, float) else reward
        return self._troubled(observation), reward, *ends, info

    def _troubled(self, observation: Any) -> Any:
        if (self.seed, self.t) != self.at or not isinstance(self.trouble, str):
            return observation
        if self.trouble == "misshapen":
            return observation[1:]
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "Peculiar":
            raise Peculiar("wheels", 100 % 51)
        if "/" not in self.trouble:
            raise getattr(builtins, self.trouble)("one of us")
        while Path(self.trouble).exists():
            time.sleep(0.01)
        return observation


gymnasium.register("tests/Dot-v0", entry_point=DotEnv)
gymnasium.register("tests/DiscreteDot-v0", entry_point=DotEnv, kwargs={"discrete": True})
gymnasium.register("tests/RenderOnly-v0", entry_point=RenderOnlyEnv)
gymnasium.register("tests/TroubledDot-v0", entry_point=TroubledDotEnv)
