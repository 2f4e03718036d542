"""A trained agent: what it sees, how it acts, and its file; acts on latents or on pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import nn

from agents.committee import as_one
from agents.controller import Controller
from agents.observations import (
    LatentStack,
    ObservationConfig,
    action_size,
    as_vector,
    from_vector,
    observation_size,
)
from agents.sac import CategoricalActor, GaussianActor
from agents.world_model import WorldModel, WorldModelConfig
from worldvae.checkpoint import CheckpointError, load_model, save_model
from worldvae.frames import to_frames
from worldvae.rollouts import describe_space, space_from
from worldvae.vae import FrameVAE

KIND = "latent-agent"


@dataclass(frozen=True)
class AgentSpec:
    """What a trained agent needs to know to act.

    Attributes:
        observation: what it sees.
        latent_size: Z of its codec.
        codec_sha256: the codec it was trained with.
        action_space: of a single environment.
        action_repeat: env steps that each action lasts.
        hidden: width of its hidden layers.
        architecture: of its actor: soft actor-critic's, or an evolved controller (``hidden`` 0: linear).
        memory: the world model whose h it sees, if any; the agent carries it.
        sampled: it sees draws from the codec's posterior, as in the dream that it learned in, not means.
        action_scale: a Box's actions are played times these, one for each number, in (0, 1]; none: as they are.
            Weaker gas than it learned with leaves a driver margins.
        actors: that act as one (``Committee``).

    Raises:
        ValueError: an action_scale that does not fit the space, or no actor.
    """

    observation: ObservationConfig
    latent_size: int
    codec_sha256: str
    action_space: gymnasium.Space
    action_repeat: int
    hidden: int
    architecture: Literal["sac", "controller"] = "sac"
    memory: WorldModelConfig | None = None
    sampled: bool = False
    action_scale: tuple[float, ...] = ()
    actors: int = 1

    def __post_init__(self) -> None:
        space, scale = self.action_space, self.action_scale
        weaker = all(0 < share <= 1 for share in scale)
        floats = isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape)
        if scale and not (weaker and len(scale) == floats):
            raise ValueError(f"action_scale needs a share in (0, 1] for each float of a Box action: {scale}, {space}")
        if scale and not space.contains(np.zeros(space.shape, space.dtype)):
            raise ValueError(f"action_scale needs an action space with 0 in it, or weaker actions leave it: {space}")
        if self.actors < 1:
            raise ValueError(f"actors must be >= 1, got {self.actors}")


class Agent(nn.Module):
    """An actor and what it needs to act; ``save`` and ``load`` it, or let it play (below)."""

    def __init__(self, spec: AgentSpec, memory: WorldModel | None = None):
        """A new agent; ``memory`` is the world model of ``spec.memory``, an untrained one by default."""
        super().__init__()
        self.spec = spec
        size = observation_size(spec.observation, spec.latent_size, spec.action_space, spec.memory)
        kind, actions = _actor(spec), action_size(spec.action_space)
        self.actor = as_one([kind(size, actions, spec.hidden) for _ in range(spec.actors)])
        self.memory = WorldModel(spec.memory) if spec.memory and memory is None else memory

    def save(self, folder: str | Path, training: Mapping[str, Any] | None = None) -> None:
        """Writes ``model.safetensors`` and ``config.json``."""
        described = {
            "observation": asdict(self.spec.observation),
            "latent_size": self.spec.latent_size,
            "codec_sha256": self.spec.codec_sha256,
            "action_space": describe_space(self.spec.action_space),
            "action_repeat": self.spec.action_repeat,
            "hidden": self.spec.hidden,
            "architecture": self.spec.architecture,
            "memory": asdict(self.spec.memory) if self.spec.memory else None,
            "sampled": self.spec.sampled,
            "action_scale": self.spec.action_scale,
            "actors": self.spec.actors,
        }
        save_model(Path(folder), KIND, self, {"config": described, "training": dict(training or {})})

    @classmethod
    def load(cls, folder: str | Path) -> Agent:
        """Reads what ``save`` wrote. Raises CheckpointError as ``FrameVAE.load`` does."""
        tensors, header = load_model(Path(folder), KIND)
        try:
            config = dict(header["config"])
            config["observation"] = ObservationConfig(**config["observation"])
            config["action_space"] = space_from(config["action_space"])
            config["memory"] = WorldModelConfig(**config["memory"]) if config["memory"] else None
            config["action_scale"] = tuple(config.get("action_scale", ()))  # agents before it had none
            agent = cls(AgentSpec(**config))
            agent.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} holds no agent this version can build: {error}") from error
        return agent.eval()


def _actor(spec: AgentSpec) -> type[CategoricalActor] | type[GaussianActor] | type[Controller]:
    if spec.architecture == "controller":
        return Controller
    return CategoricalActor if isinstance(spec.action_space, Discrete) else GaussianActor


class LatentAgent:
    """A ``BehaviourPolicy`` on latents [N, Z]: the agent's most likely actions; where it chooses among a few, draws.

    What soft actor-critic learns there is to draw (benchmarks/LOG.md, other environments). The same number of
    environments gives the same draws.
    """

    def __init__(self, agent: Agent, num_envs: int):
        spec = agent.spec
        self._agent = agent
        self._generator = torch.Generator().manual_seed(0) if _actor(spec) is CategoricalActor else None
        actions = action_size(spec.action_space)
        self._stack = LatentStack(spec.observation, num_envs, spec.latent_size, actions, agent.memory)
        self._scale = np.reshape(spec.action_scale, spec.action_space.shape or ()) if spec.action_scale else None

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self._stack.reset(mask)

    @torch.no_grad()
    def act(self, observations: NDArray[np.float32]) -> NDArray[Any]:
        seen = torch.from_numpy(self._stack.push(observations))
        space = self._agent.spec.action_space
        actions = from_vector(self._agent.actor.act(seen, self._generator).numpy(), space)
        self._stack.acted(as_vector(actions, space))  # what was meant: scores become a choice
        return actions if self._scale is None else (actions * self._scale).astype(actions.dtype)


class PixelAgent:
    """A ``BehaviourPolicy`` on raw pixels: the codec encodes, the agent acts.

    Raises CheckpointError where the codec is not the one the agent was trained with.
    """

    def __init__(self, agent: Agent, vae: FrameVAE, num_envs: int):
        if vae.sha256 != agent.spec.codec_sha256:
            raise CheckpointError(
                f"the agent was trained with codec {agent.spec.codec_sha256[:12]}, this one is {vae.sha256[:12]}"
            )
        self._vae, self._sampled = vae, agent.spec.sampled
        self._generator = torch.Generator().manual_seed(0)
        self._policy = LatentAgent(agent, num_envs)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self._policy.reset(mask)

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        posterior = self._vae.encode(to_frames(observations, self._vae.config.frame))
        z = posterior.sample(self._generator) if self._sampled else posterior.mean
        return self._policy.act(z.cpu().numpy())
