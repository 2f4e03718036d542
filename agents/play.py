"""What an evolution's worker does: many candidates' episodes at once, in one vector environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import nn

from agents.agent import Agent, LatentAgent
from agents.controller import Controller
from worldvae.environments import CutWithoutReward, closing, make_vector_env
from worldvae.record import interact
from worldvae.vae import FrameVAE
from worldvae.wrappers import LatentVectorObservation

MakeEnv = Callable[[Sequence[int], int | None], VectorEnv]
"""(an episode seed for each environment, patience) -> latents float32 [N, Z]; picklable."""


@dataclass(frozen=True)
class Play:
    """A worker's task: C candidates on the same R episodes.

    Attributes:
        weights: float64 [C, P]
        seeds: one an episode.
        patience: None plays episodes to their end.
    """

    weights: NDArray[np.float64]
    seeds: tuple[int, ...]
    patience: int | None


@dataclass(frozen=True)
class Played:
    """``returns`` float64 [C, R], undiscounted; emulator's steps, or the dream's, of all episodes together."""

    returns: NDArray[np.float64]
    env_steps: int
    dream_steps: int = 0


@dataclass(frozen=True)
class Player:
    """Makes a worker: loads the agent whose controller the candidates replace."""

    agent: Path
    make_env: MakeEnv
    processes: int

    def __call__(self) -> Callable[[Play], Played]:
        if self.processes > 1:
            torch.set_num_threads(1)
        return partial(play, Agent.load(self.agent), self.make_env)


def play(agent: Agent, make_env: MakeEnv, task: Play) -> Played:
    """Plays all candidates at once, each episode in an environment of its own.

    ``agent``'s controller is theirs from now on.
    """
    candidates = len(task.weights)
    controller_of(agent).weights = nn.Parameter(torch.from_numpy(task.weights).float(), requires_grad=False)
    seeds = task.seeds * candidates
    returns, env_steps = np.zeros(len(seeds)), 0
    with closing(make_env(seeds, task.patience)) as env:
        for step in interact(env, LatentAgent(agent, len(seeds)), seeds):
            returns[step.recorded] += step.rewards_tp1[step.recorded]
            env_steps += int(step.env_steps[step.recorded].sum())
    return Played(returns.reshape(candidates, -1), env_steps)


def controller_of(agent: Agent) -> Controller:
    if not isinstance(agent.actor, Controller):
        raise ValueError(f"only controllers evolve, not a {type(agent.actor).__name__}")
    return agent.actor


@dataclass(frozen=True)
class LatentEnvs:
    """``MakeEnv`` for pixel environments seen through a codec; arguments as in ``make_vector_env``.

    Attributes:
        codec: the folder of a ``FrameVAE``.
        backend: EnvPool's threads, or Gymnasium's environments in the worker's own process. Each
            has its own episodes for a seed, which depend on nothing else.
        sample: latents are draws from the codec's posterior.
    """

    codec: Path
    env_id: str
    backend: Literal["envpool", "sync"] = "sync"
    action_repeat: int = 1
    max_episode_steps: int | None = None
    key: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    sample: bool = False

    def __call__(self, seeds: Sequence[int], patience: int | None) -> VectorEnv:
        """N environments for N seeds, [N, Z]; ``patience`` as in ``CutWithoutReward``."""
        seeding = {"env_seed": list(seeds)} if self.backend == "envpool" else {}  # it takes none in reset
        env = make_vector_env(
            self.env_id,
            len(seeds),
            backend=self.backend,
            action_repeat=self.action_repeat,
            max_episode_steps=self.max_episode_steps,
            key=self.key,
            env_kwargs={**self.env_kwargs, **seeding},
        )
        if patience is not None:
            env = CutWithoutReward(env, patience)
        return LatentVectorObservation(env, _codec(self.codec), sample=self.sample)


@cache
def _codec(folder: Path) -> FrameVAE:
    return FrameVAE.load(folder)
