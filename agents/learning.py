"""Latent environment -> trained agent: play, remember, learn, with the project's one fit loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from agents.agent import Agent, AgentSpec
from agents.evaluation import first_seed
from agents.imagination import Imagination, ImaginationConfig
from agents.observations import (
    LatentStack,
    ObservationConfig,
    action_size,
    as_vector,
    from_vector,
    observation_size,
    observations_of,
)
from agents.replay import Replay, TransitionBatch
from agents.sac import SAC, SACConfig
from agents.world_model import State, WorldModel
from worldvae.devices import pick_device
from worldvae.environments import hidden_repeat
from worldvae.fit import FitConfig, Metrics, fit, settled
from worldvae.latents import LatentEpisode, LatentStore
from worldvae.record import interact


@dataclass(frozen=True)
class LearningConfig:
    """How an agent plays and learns.

    Attributes:
        env_steps: emulator steps to play, at most.
        updates: gradient steps after each step of the N environments.
        batch_size: transitions a gradient step.
        replay_capacity: transitions kept.
        reward_clip, reward_scale: rewards of a decision are clipped, then scaled, for learning only.
        endless: learn from the task's own ends as from time limits. Where codes do not foretell them (a lap's last
            tile looks like any other) the fall to nothing there is noise to a critic.
        warm_up: decisions with random actions (each environment) where no rollouts start the replay.
        minutes: stop earlier after so much wall time.
        action_scale: by how much it plays weaker, number by number, once it has learned: margins, where haste fails.
        observation: what the controller sees.
        imagination: how much of what it learns from is dreamt.
        sac: the learner's settings.
        seed: of weights, noise and episodes.
        device: cpu, cuda, or auto.
    """

    env_steps: int = 250_000
    updates: int = 12
    batch_size: int = 256
    replay_capacity: int = 200_000
    reward_clip: tuple[float, float] = (-5.0, 20.0)
    reward_scale: float = 0.1
    endless: bool = False
    warm_up: int = 100
    minutes: float | None = None
    action_scale: tuple[float, ...] = ()
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("env_steps", "updates", "batch_size", "replay_capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


def train_agent(
    env: VectorEnv,
    config: LearningConfig,
    folder: str | Path,
    *,
    codec_sha256: str,
    action_repeat: int = 1,
    rollouts: LatentStore | None = None,
    memory: WorldModel | None = None,
) -> Agent:
    """Learns to act in ``env`` by SAC and saves the agent into ``folder``; resumes what it began.

    Args:
        env: latent observations float32 [N, Z] (``LatentVectorObservation``), any autoreset mode;
            each step costs at most ``action_repeat`` env steps an environment.
        codec_sha256: of the codec behind ``env``; the agent refuses to play on another.
        rollouts: encoded episodes of the same environment that the replay starts with.
        memory: the world model whose h the agent sees too; it is not trained here.

    Raises:
        ValueError: an action space other than bounded Box or Discrete, an action_scale that does not fit it, too few
            env steps, or no CUDA where asked for.
    """
    folder = Path(folder)
    learner = Learner(env, config, rollouts, memory)
    spec = AgentSpec(
        observation=config.observation,
        latent_size=learner.latent_size,
        codec_sha256=codec_sha256,
        action_space=env.single_action_space,
        action_repeat=action_repeat,
        hidden=config.sac.hidden,
        memory=memory.config if memory else None,
        action_scale=config.action_scale,
    )
    repeat = action_repeat * hidden_repeat(env)
    learning_steps = config.env_steps // (env.num_envs * repeat) - learner.warm_up
    if learning_steps < 1:
        raise ValueError(
            f"{config.env_steps} env steps are over before learning begins ({learner.warm_up} warm-up decisions of "
            f"{repeat} env steps in {env.num_envs} environments): play more"
        )
    steps = learning_steps * config.updates
    every = max(1, min(1000, steps // 20))
    seconds = None if config.minutes is None else config.minutes * 60
    log = fit(
        learner.sac.step,
        learner.batches,
        learner,
        FitConfig(steps, log_every=every, checkpoint_every=4 * every, seconds=seconds),
        folder,
        name="agent",
        settings=settled(config, but=("env_steps", "minutes", "action_scale", "device")),
        observe=learner.observe,
    )
    agent = Agent(spec, memory)
    agent.actor.load_state_dict(learner.sac.averaged.state_dict())
    agent.save(folder, {**asdict(config), **log[-1]})
    return agent


class Learner:
    """SAC, its replay, and the play that fills it: all that training changes."""

    def __init__(
        self,
        env: VectorEnv,
        config: LearningConfig,
        rollouts: LatentStore | None = None,
        memory: WorldModel | None = None,
    ):
        self.env, self.config, self.memory = env, config, memory
        self.space: gymnasium.Space = env.single_action_space
        if not isinstance(self.space, Box | Discrete):
            raise ValueError(f"soft actor-critic plays Box and Discrete action spaces, not {self.space}")
        assert env.single_observation_space.shape is not None
        self.latent_size = env.single_observation_space.shape[0]
        self.device = pick_device(config.device)
        actions = action_size(self.space)
        size = observation_size(
            config.observation, self.latent_size, self.space, self.memory.config if self.memory else None
        )
        self.sac = SAC(size, actions, isinstance(self.space, Discrete), config.sac, config.seed, self.device)
        self.replay = Replay(config.replay_capacity, size, actions, self.device)
        self.imagination: Imagination | None = None  # what it has dreamt is not kept when learning is interrupted
        if config.imagination.share:
            dreamer = deepcopy(memory).to(self.device) if memory else None
            self.imagination = Imagination(dreamer, config.observation, config.imagination, config.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.env_steps = 0
        self.episodes = 0
        self.returns: deque[float] = deque(maxlen=30)
        self.warm_up = config.warm_up if rollouts is None else 0
        for episode in rollouts or ():
            self._remember_episode(episode)

    def batches(self, start: int) -> Iterator[TransitionBatch]:
        """Plays one step in all environments, yields ``updates`` batches, and so on."""
        if self.imagination is None:  # whose dreams are not kept
            for _ in range(-start % self.config.updates):  # what was due when learning was interrupted
                yield self._batch()
        policy = _Explorer(self)
        running = np.zeros(self.env.num_envs)
        seeds = count(first_seed(self.config.seed) + self.episodes)
        for step in interact(self.env, policy, seeds):
            kept = step.recorded
            self.env_steps += int(step.env_steps[kept].sum())
            running[step.started] = 0
            running[kept] += step.rewards_tp1[kept]
            ended = step.done & kept
            self.episodes += int(ended.sum())
            self.returns.extend(running[ended].tolist())
            self.replay.add(
                policy.observations_t[kept],
                policy.actions_t[kept],
                self._reward(step.rewards_tp1[kept]),
                self._ended(step.terminated[kept]),
                policy.stack.peek(step.observations_tp1)[kept],
            )
            if self.warm_up > 0:
                self.warm_up -= 1
                continue
            self._imagine(step.observations_tp1, policy.stack.state, kept & ~step.done)
            for _ in range(self.config.updates):
                yield self._batch()

    def observe(self) -> Metrics:
        """Env steps and episodes so far, and the mean return of the last 30 (while exploring)."""
        played: Metrics = {"env_steps": self.env_steps, "episodes": self.episodes}
        return {**played, "return": float(np.mean(self.returns))} if self.returns else played

    def _imagine(self, z_tp1: NDArray[np.float32], state: State | None, alive: NDArray[np.bool_]) -> None:
        """Dreams a little from where the environments are, and have been, where they are still alive (bool [N])."""
        if self.imagination is None or state is None:
            return
        h, c = (part[torch.from_numpy(alive).to(part.device)] for part in state)
        self.imagination.live(torch.from_numpy(z_tp1[alive]), (h, c))
        for step in self.imagination.dream(lambda seen: self.sac.act(seen, explore=True)):
            seen_t, actions_t, rewards, continues, seen_tp1 = (x.cpu().numpy() for x in vars(step).values())
            ended = self._ended(continues == 0)
            self.imagination.dreamt.add(seen_t, actions_t, self._reward(rewards), ended, seen_tp1)

    def _batch(self) -> TransitionBatch:
        """Real transitions and, where the agent imagines, its share of dreamt ones."""
        size = self.config.batch_size
        if self.imagination is None:
            return self.replay.sample(size, self.generator)
        dreamt = round(size * self.config.imagination.share)
        real = self.replay.sample(size - dreamt, self.generator)
        return real.with_more(self.imagination.dreamt.sample(dreamt, self.generator))

    def _remember_episode(self, episode: LatentEpisode) -> None:
        seen = observations_of(episode, self.config.observation, self.space, self.memory)
        terminated = np.zeros(len(episode.rewards), bool)
        terminated[-1] = episode.terminated
        kept = episode.visible[1:] | terminated  # a blanked successor says nothing, but an end does
        actions = as_vector(episode.actions, self.space)
        rewards = self._reward(episode.rewards[kept])
        self.replay.add(seen[:-1][kept], actions[kept], rewards, self._ended(terminated[kept]), seen[1:][kept])

    def _reward(self, rewards: NDArray[Any]) -> NDArray[Any]:
        """What is learned from: clipped and scaled."""
        return np.clip(rewards, *self.config.reward_clip) * self.config.reward_scale

    def _ended(self, terminated: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """After which steps nothing more is to be expected."""
        return np.zeros_like(terminated) if self.config.endless else terminated

    def state_dict(self) -> dict[str, Any]:
        return {
            "sac": self.sac.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "returns": list(self.returns),
            "warm_up": self.warm_up,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sac.load_state_dict(state["sac"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"])
        self.returns.extend(state["returns"])
        for name in ("env_steps", "episodes", "warm_up"):
            setattr(self, name, state[name])


class _Explorer:
    """The learner at play: samples its own actions, random ones during the warm-up."""

    def __init__(self, learner: Learner):
        env, space = learner.env, learner.space
        self._learner = learner
        self._random = np.random.default_rng((learner.config.seed, learner.env_steps))
        actions = action_size(space)
        self.stack = LatentStack(learner.config.observation, env.num_envs, learner.latent_size, actions, learner.memory)
        self.observations_t = np.empty(0, np.float32)
        self.actions_t = np.empty(0, np.float32)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self.stack.reset(mask)

    def act(self, observations: NDArray[np.float32]) -> NDArray[Any]:
        self.observations_t = self.stack.push(observations)
        space = self._learner.space
        if self._learner.warm_up > 0:
            self.actions_t = self._random_actions(space)
        else:
            vectors = self._learner.sac.act(torch.from_numpy(self.observations_t), explore=True)
            self.actions_t = vectors.cpu().numpy()
        self.stack.acted(self.actions_t)
        return from_vector(self.actions_t, space)

    def _random_actions(self, space: gymnasium.Space) -> NDArray[np.float32]:
        n = len(self.observations_t)
        if isinstance(space, Discrete):
            return np.eye(int(space.n), dtype=np.float32)[self._random.integers(space.n, size=n)]
        return self._random.uniform(-1, 1, (n, action_size(space))).astype(np.float32)
