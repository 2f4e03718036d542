"""What a controller sees: z, stacked z, traces of z, or z + h, the world model's memory of what came before.

Knows nothing of pixels, learning or environments' backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from agents.world_model import State, WorldModel, WorldModelConfig
from worldvae.latents import LatentEpisode


@dataclass(frozen=True)
class ObservationConfig:
    """What a controller sees.

    Attributes:
        stack: how many frames' latents (velocity is invisible in one).
        last_action: append the action that led here (one-hot where discrete).
        traces: append averages of all latents so far, each weighing the one before this share of its successor: 0.98
            remembers some 50 decisions, a turn the wrong way, say (memory traces: Eberhard et al. 2025).
    """

    stack: int = 4
    last_action: bool = True
    traces: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "traces", tuple(self.traces))  # a list, where read from JSON
        if self.stack < 1:
            raise ValueError(f"stack must be >= 1, got {self.stack}")
        if not all(0 < decay < 1 for decay in self.traces):
            raise ValueError(f"traces must lie between 0 and 1, got {self.traces}")


Z_ALONE = ObservationConfig(stack=1, last_action=False)
"""The newest code and, where there is a memory, its h: all there is in a dream."""


def observation_size(
    config: ObservationConfig, latent_size: int, space: gymnasium.Space, memory: WorldModelConfig | None = None
) -> int:
    """How many numbers a controller sees: stacked latents, their traces, the last action, h."""
    actions = action_size(space) if config.last_action else 0
    return (config.stack + len(config.traces)) * latent_size + actions + (memory.hidden if memory else 0)


def action_size(space: gymnasium.Space) -> int:
    """Numbers per action: a Box's dimensions, or one per choice of a Discrete or MultiDiscrete space.

    Raises ValueError for any other space, and for a Box without bounds.
    """
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return int(space.nvec.sum())
    if not isinstance(space, Box):
        raise ValueError(f"agents play Box, Discrete and flat MultiDiscrete action spaces, not {space}")
    if not space.is_bounded():
        raise ValueError(f"agents need bounded actions, not {space}: wrap it in gymnasium.wrappers.RescaleAction")
    return int(np.prod(space.shape))


def as_vector(actions: NDArray[Any], space: gymnasium.Space) -> NDArray[np.float32]:
    """Actions [N, ..] -> float32 [N, A]: flat in [-1, 1] (Box) or one-hot, side by side (discrete)."""
    if isinstance(space, Box):
        middle, half = _middle_and_half(space)
        return ((actions - middle) / half).reshape(len(actions), -1).astype(np.float32)
    choices, starts = _choices(space)
    columns = (np.asarray(actions).reshape(len(actions), -1) - starts).T
    return np.concatenate([np.eye(n, dtype=np.float32)[c] for n, c in zip(choices, columns, strict=True)], axis=1)


def from_vector(vectors: NDArray[np.float32], space: gymnasium.Space) -> NDArray[Any]:
    """The inverse of ``as_vector``: float [N, A] -> actions of the space (argmax where discrete)."""
    if isinstance(space, Box):
        middle, half = _middle_and_half(space)
        actions = np.clip(middle + half * vectors.reshape(-1, *space.shape), space.low, space.high)
        return (np.rint(actions) if np.issubdtype(space.dtype, np.integer) else actions).astype(space.dtype)
    choices, starts = _choices(space)
    best = [part.argmax(-1) for part in np.split(vectors, np.cumsum(choices)[:-1], axis=1)]
    return (np.stack(best, axis=1) + starts).reshape(-1, *(space.shape or ())).astype(space.dtype)


def _middle_and_half(space: Box) -> tuple[NDArray[Any], NDArray[Any]]:
    """A Box's centre and half its width (1 where it has none: such an action is always its centre)."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)  # 100 + 200 is 44 in uint8
    half = (high - low) / 2
    return (high + low) / 2, np.where(half > 0, half, 1)


def _choices(space: gymnasium.Space) -> tuple[list[int], NDArray[Any]]:
    """How many choices each factor of a discrete space has, and the first of each."""
    if isinstance(space, Discrete):
        return [int(space.n)], np.array([space.start])
    assert isinstance(space, MultiDiscrete)
    return space.nvec.tolist(), space.start


class LatentStack:
    """The last ``stack`` latents, their traces, the last action and the memory h of N environments.

    An episode's first latent fills the whole stack and all traces, its action before is zero, and h_0 = 0.
    """

    def __init__(
        self,
        config: ObservationConfig,
        num_envs: int,
        latent_size: int,
        actions: int,
        memory: WorldModel | None = None,
    ):
        self._config = config
        self._latents = np.zeros((num_envs, config.stack, latent_size), np.float32)
        self._decays = np.array(config.traces, np.float32)[:, None]
        self._traces = np.zeros((num_envs, len(config.traces), latent_size), np.float32)
        self._action = np.zeros((num_envs, actions), np.float32)
        self._started = np.ones(num_envs, bool)
        self._memory = memory
        self._state = memory.start(num_envs) if memory else None

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """The next latents of these environments are their episodes' first."""
        self._started = self._started | mask

    def push(self, z_t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes in z_t [N, Z]; returns the observation float32 [N, O]."""
        started, alone = self._started[:, None, None], z_t[:, None]
        self._latents = np.where(started, alone, self._with(z_t))
        self._traces = np.where(started, alone, self._traced(z_t))
        self._action[self._started] = 0
        if self._state is not None:
            for part in self._state:
                part[torch.from_numpy(self._started)] = 0
        self._started[:] = False
        return self._observation(self._latents, self._traces)

    def acted(self, action_vectors: NDArray[np.float32]) -> None:
        """Remembers the actions [N, A] just taken."""
        self._action = action_vectors.copy()
        if self._memory is not None and self._state is not None:
            z_t, a_t = (torch.from_numpy(x).to(self._memory.device) for x in (self._latents[:, -1], self._action))
            self._state = self._memory.advance(z_t, a_t, self._state)

    @property
    def state(self) -> State | None:
        """The memory's h and c after the last action, each float32 [N, H]; None without one."""
        return self._state

    def peek(self, z_tp1: NDArray[np.float32]) -> NDArray[np.float32]:
        """The observation [N, O] that z_tp1 would make, without taking it in."""
        return self._observation(self._with(z_tp1), self._traced(z_tp1))

    def _with(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([self._latents[:, 1:], z[:, None]], axis=1)

    def _traced(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        return z[:, None] + self._decays * (self._traces - z[:, None])

    def _observation(self, latents: NDArray[np.float32], traces: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [latents.reshape(len(latents), -1), traces.reshape(len(traces), -1)]
        parts += [self._action] if self._config.last_action else []
        parts += [self._state[0].cpu().numpy()] if self._state is not None else []
        return np.concatenate(parts, axis=1)


def observations_of(
    episode: LatentEpisode, config: ObservationConfig, space: gymnasium.Space, memory: WorldModel | None = None
) -> NDArray[np.float32]:
    """What a controller would have seen in a recorded episode: float32 [T+1, O]."""
    vectors = as_vector(episode.actions, space)
    stack = LatentStack(config, 1, episode.mean.shape[1], vectors.shape[1], memory)
    seen = []
    for t, z_t in enumerate(episode.mean):
        seen.append(stack.push(z_t[None])[0])
        if t < len(vectors):
            stack.acted(vectors[t][None])
    return np.stack(seen)
