"""Behaviour policies: who acts while rollouts are recorded.

A ``BehaviourPolicy`` maps a batch of observations to a batch of actions and is told which
environments have just started. Random ones live here; a trained agent is one too (``agents``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray


class BehaviourPolicy(Protocol):
    """Acts in N environments at once."""

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Forgets the past of the environments where ``mask`` [N] is true."""

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Observations [N, ..] -> actions [N, ..] of the environment's action space."""


class UniformPolicy:
    """Uniform actions, independent of each other; each is held for so many decisions."""

    def __init__(self, space: gymnasium.Space, num_envs: int, seed: int, held: int = 1):
        if held < 1:
            raise ValueError(f"an action must be held for >= 1 decisions, got {held}")
        self._low, self._high, self._dtype = _bounds(space)
        self._held, self._decisions = held, np.zeros(num_envs, np.int64)
        self._random = np.random.default_rng(seed)
        self._integers = np.issubdtype(self._dtype, np.integer)
        self._actions = np.zeros((num_envs, *self._low.shape), self._dtype)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self._decisions[mask] = 0

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        over = self._decisions % self._held == 0
        self._actions[over] = self._drawn()[over]
        self._decisions += 1
        return self._actions.copy()

    def _drawn(self) -> NDArray[Any]:
        size = self._actions.shape
        if self._integers:
            return self._random.integers(self._low, self._high, size, endpoint=True).astype(self._dtype)
        return self._random.uniform(self._low, self._high, size).astype(self._dtype)


@dataclass(frozen=True)
class CorrelatedConfig:
    """How correlated actions wander.

    Attributes:
        correlation: time constant in decisions: how long an action roughly lasts.
        mean, sd: stationary mean and sd per action dimension in the action's own unit (an action
            prior: 'mostly gas' is mean 0.35 on the gas); None: the middle and half of the range.
    """

    correlation: float = 10.0
    mean: tuple[float, ...] | None = None
    sd: tuple[float, ...] | None = None


class CorrelatedPolicy:
    """Actions that last: an Ornstein-Uhlenbeck walk (Box), or held for a random time (discrete).

    Uncorrelated noise averages out to standing still and sees little of an environment.
    """

    def __init__(self, space: gymnasium.Space, num_envs: int, seed: int, config: CorrelatedConfig | None = None):
        self.config = config or CorrelatedConfig()
        self._low, self._high, self._dtype = _bounds(space)
        if self.config.correlation <= 0:
            raise ValueError(f"correlation must be > 0 decisions, got {self.config.correlation}")
        self._continuous = isinstance(space, Box)
        self._mean = self._per_dimension(self.config.mean, (self._low + self._high) / 2)
        self._sd = self._per_dimension(self.config.sd, (self._high - self._low) / 2)
        self._random = np.random.default_rng(seed)
        self._uniform = UniformPolicy(space, num_envs, seed + 1)
        self._state = np.zeros((num_envs, *self._low.shape))
        self.reset(np.ones(num_envs, bool))

    def reset(self, mask: NDArray[np.bool_]) -> None:
        noise = self._random.standard_normal(self._state.shape)
        fresh = self._mean + self._sd * noise if self._continuous else self._uniform.act(self._state)
        self._state[mask] = fresh[mask]

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        if self._continuous:
            keep = np.exp(-1 / self.config.correlation)
            noise = self._sd * self._random.standard_normal(self._state.shape)
            self._state = self._mean + keep * (self._state - self._mean) + np.sqrt(1 - keep**2) * noise
        else:
            switch = self._random.random(len(self._state)) < 1 / self.config.correlation
            self._state[switch] = self._uniform.act(self._state)[switch]
        actions = np.clip(self._state, self._low, self._high)
        return (actions.round() if np.issubdtype(self._dtype, np.integer) else actions).astype(self._dtype)

    def _per_dimension(self, given: tuple[float, ...] | None, default: NDArray[Any]) -> NDArray[Any]:
        if given is None:
            return default
        if len(given) not in (1, self._low.size):
            raise ValueError(f"{given} should have one number per action dimension ({self._low.size})")
        return np.broadcast_to(np.asarray(given), (self._low.size,)).reshape(self._low.shape)


def random_policy(
    kind: Literal["uniform", "correlated"],
    space: gymnasium.Space,
    num_envs: int,
    seed: int,
    config: CorrelatedConfig | None = None,
) -> BehaviourPolicy:
    """The random policy of that kind over N environments with this single action space."""
    if kind == "uniform":
        return UniformPolicy(space, num_envs, seed)
    return CorrelatedPolicy(space, num_envs, seed, config)


def _bounds(space: gymnasium.Space) -> tuple[NDArray[Any], NDArray[Any], np.dtype]:
    """Lowest and highest action (both included) and the dtype of a single action space."""
    if isinstance(space, Box):
        if not space.is_bounded():
            raise ValueError(f"random actions need a bounded action space, not {space}")
        return space.low.astype(np.float64), space.high.astype(np.float64), np.dtype(space.dtype)
    if isinstance(space, Discrete):
        first = np.asarray(space.start)
        return first, first + int(space.n) - 1, np.dtype(space.dtype)
    if isinstance(space, MultiDiscrete):
        return space.start, space.start + space.nvec - 1, np.dtype(space.dtype)
    raise ValueError(f"actions must be Box, Discrete or MultiDiscrete, not {space}")
