"""What a controller sees: the latents of a frame, or of the last few with the last action.

Knows nothing of pixels, learning or environments' backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from worldvae.latents import LatentEpisode


@dataclass(frozen=True)
class ObservationConfig:
    """What a controller sees.

    Attributes:
        stack: how many frames' latents (velocity is invisible in one).
        last_action: append the action that led here (one-hot where discrete).
    """

    stack: int = 4
    last_action: bool = True

    def __post_init__(self) -> None:
        if self.stack < 1:
            raise ValueError(f"stack must be >= 1, got {self.stack}")


def observation_size(config: ObservationConfig, latent_size: int, space: gymnasium.Space) -> int:
    """How many numbers a controller sees."""
    return config.stack * latent_size + (action_size(space) if config.last_action else 0)


def action_size(space: gymnasium.Space) -> int:
    """Numbers per action: a Box's dimensions, or one per choice of a Discrete space.

    Raises ValueError for any other space, naming those that agents here can play.
    """
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, Box):
        return int(np.prod(space.shape))
    raise ValueError(f"agents play Box and Discrete action spaces, not {space}")


def as_vector(actions: NDArray[Any], space: gymnasium.Space) -> NDArray[np.float32]:
    """Actions [N, ..] -> float32 [N, A]: flat in [-1, 1] (Box) or one-hot (Discrete)."""
    if isinstance(space, Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(actions) - int(space.start)]
    assert isinstance(space, Box)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return ((actions - middle) / half).reshape(len(actions), -1).astype(np.float32)


def from_vector(vectors: NDArray[np.float32], space: gymnasium.Space) -> NDArray[Any]:
    """The inverse of ``as_vector``: float [N, A] -> actions of the space (argmax where discrete)."""
    if isinstance(space, Discrete):
        return vectors.argmax(-1).astype(space.dtype) + space.start
    assert isinstance(space, Box)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    actions = middle + half * vectors.reshape(-1, *space.shape)
    return np.clip(actions, space.low, space.high).astype(space.dtype)


class LatentStack:
    """The last ``stack`` latents and the last action of N environments.

    An episode's first latent fills the whole stack, and its action before is zero.
    """

    def __init__(self, config: ObservationConfig, num_envs: int, latent_size: int, actions: int):
        self._config = config
        self._latents = np.zeros((num_envs, config.stack, latent_size), np.float32)
        self._action = np.zeros((num_envs, actions), np.float32)
        self._started = np.ones(num_envs, bool)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """The next latents of these environments are their episodes' first."""
        self._started = self._started | mask

    def push(self, z_t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes in z_t [N, Z]; returns the observation float32 [N, O]."""
        shifted = np.concatenate([self._latents[:, 1:], z_t[:, None]], axis=1)
        filled = np.repeat(z_t[:, None], self._config.stack, axis=1)
        self._latents = np.where(self._started[:, None, None], filled, shifted)
        self._action[self._started] = 0
        self._started[:] = False
        return self._observation(self._latents, self._action)

    def acted(self, action_vectors: NDArray[np.float32]) -> None:
        """Remembers the actions [N, A] just taken."""
        self._action = action_vectors.copy()

    def peek(self, z_tp1: NDArray[np.float32]) -> NDArray[np.float32]:
        """The observation [N, O] that z_tp1 would make, without taking it in."""
        latents = np.concatenate([self._latents[:, 1:], z_tp1[:, None]], axis=1)
        return self._observation(latents, self._action)

    def _observation(self, latents: NDArray[np.float32], action: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = latents.reshape(len(latents), -1)
        return np.concatenate([flat, action], axis=1) if self._config.last_action else flat.copy()


def observations_of(episode: LatentEpisode, config: ObservationConfig, space: gymnasium.Space) -> NDArray[np.float32]:
    """What a controller would have seen in a recorded episode: float32 [T+1, O]."""
    vectors = as_vector(episode.actions, space)
    stack = LatentStack(config, 1, episode.mean.shape[1], vectors.shape[1])
    seen = []
    for t, z_t in enumerate(episode.mean):
        seen.append(stack.push(z_t[None])[0])
        if t < len(vectors):
            stack.acted(vectors[t][None])
    return np.stack(seen)
