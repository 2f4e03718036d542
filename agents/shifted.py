"""CarRacing-v3 that looks otherwise: other colours, bars at the sides, a blob. What does an agent depend on?

After the extensions of CarRacing-v0 by Tang et al. 2020 (Neuroevolution of Self-Interpretable Agents), where agents
are judged that never saw them; sizes and colours are our own. Track, physics and rewards are those of CarRacing-v3
with the same seed. Ids: ``agents.shifted:CarRacingColours-v0``, ``CarRacingBars-v0``, ``CarRacingBlob-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

SHIFT = 51
"""Grey levels: the most by which a channel of the road's or the grass's colour moves, a fifth of all."""
USUAL = {"road_color": (102, 102, 102), "bg_color": (102, 204, 102), "grass_color": (102, 230, 102)}
"""CarRacing-v3's attributes."""
BAR = 12
"""Columns of the 96 that are black, on each side."""
BLOB = (48, 76, 7)
"""Row, column and radius of the red disc, in pixels: on the right of the car, mostly over grass."""


class Colours(gymnasium.Wrapper):
    """Road and grass in colours of their own, drawn anew for each episode."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._random = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        road, grass = self._random.uniform(-SHIFT, SHIFT, (2, 3))
        for name, shift in (("road_color", road), ("bg_color", grass), ("grass_color", grass)):
            setattr(self.unwrapped, name, np.clip(USUAL[name] + shift, 0, 255))
        return super().reset(seed=seed, options=options)


class Covered(gymnasium.ObservationWrapper):
    """A part of the screen hidden under one colour; ``where`` is bool [H, W]."""

    def __init__(self, env: gymnasium.Env, where: NDArray[np.bool_], colour: tuple[int, int, int]):
        super().__init__(env)
        self.where, self.colour = where, np.array(colour, np.uint8)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.where(self.where[:, :, None], self.colour, observation)


def colours(**kwargs: Any) -> gymnasium.Env:
    return Colours(gymnasium.make("CarRacing-v3", **kwargs))


def bars(**kwargs: Any) -> gymnasium.Env:
    columns = np.arange(96)
    hidden = (columns < BAR) | (columns >= 96 - BAR)
    return Covered(gymnasium.make("CarRacing-v3", **kwargs), np.tile(hidden, (96, 1)), (0, 0, 0))


def blob(**kwargs: Any) -> gymnasium.Env:
    row, column, radius = BLOB
    y, x = np.mgrid[:96, :96]
    return Covered(gymnasium.make("CarRacing-v3", **kwargs), np.hypot(y - row, x - column) <= radius, (255, 0, 0))


gymnasium.register("CarRacingColours-v0", entry_point="agents.shifted:colours")
gymnasium.register("CarRacingBars-v0", entry_point="agents.shifted:bars")
gymnasium.register("CarRacingBlob-v0", entry_point="agents.shifted:blob")
