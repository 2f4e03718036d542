"""Stage 5, by evolution: CMA-ES on a controller of few weights that sees z, or z and h, in reality or in the dream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from agents.agent import Agent, AgentSpec
from agents.dream import DreamConfig
from agents.dream_play import DreamPlayer
from agents.evolution import EvolutionConfig, evolve
from agents.observations import as_vector
from agents.play import LatentEnvs, controller_of
from scripts import cli
from scripts.dreaming import dreaming
from scripts.run_folder import RunFolder
from scripts.train_dynamics import Memory, memory_of
from worldvae.environments import envpool_shows
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE


@dataclass(frozen=True)
class EvolveConfig:
    """Where to evolve, what to remember, and how.

    Attributes:
        backend: auto takes EnvPool where it is installed and has images of the id, else Gymnasium's
            environments, each worker's in its own process.
        memory: whose h the controller sees beside z: nobody's, an untrained world model's, or the
            one in RUN/dynamics.
        inside: where candidates play: the environment, or dreams of RUN/dynamics that begin at the rollouts'
            codes; then only selection takes env steps.
        dream: of what kind.
        context: real steps that a dream's beginning has behind it; 0: dreams begin where episodes do.
        start: the action that the first controller takes whatever it sees (an action prior: gas 0.3 and
            no brake for a car); None: the middle of the range.
        evolution: how controllers evolve.
    """

    backend: Literal["auto", "envpool", "sync"] = "auto"
    memory: Memory = "none"
    inside: Literal["environment", "dream"] = "environment"
    dream: DreamConfig = field(default_factory=DreamConfig)
    context: int = 0
    start: tuple[float, ...] | None = None
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)

    def __post_init__(self) -> None:
        if self.inside == "dream" and self.memory == "untrained":
            raise ValueError("in a dream h is of the world model that dreams: --memory trained, or none")


def run_evolution(run: RunFolder, config: EvolveConfig) -> Agent:
    """Evolves a controller in the rollouts' environment, seen through the run's codec."""
    store, vae = RolloutStore(run.rollouts), FrameVAE.load(run.vae)
    memory = memory_of(run, config.memory, vae, store.action_space, config.evolution.seed)
    spec = AgentSpec(
        observation=config.evolution.observation,
        latent_size=vae.latent_size,
        codec_sha256=vae.sha256,
        action_space=store.action_space,
        action_repeat=store.manifest["action_repeat"],
        hidden=config.evolution.hidden,
        architecture="controller",
        memory=memory.config if memory else None,
        sampled=config.inside == "dream",
    )
    agent = Agent(spec, memory)
    if config.start is not None:
        weights, bias = controller_of(agent).weights, as_vector(np.array([config.start]), store.action_space)[0]
        weights[-len(bias) :] = torch.from_numpy(bias).clamp(-0.95, 0.95).atanh()  # where tanh still has a slope
    envs, dream = latent_envs(run, store, config.backend, spec.sampled), None
    if config.inside == "dream":
        model, starts = dreaming(run, store, vae, config.context, config.evolution.seed)
        dream = DreamPlayer(agent, model, starts, config.dream)
    return evolve(agent, envs, config.evolution, run.evolved, dream)


def latent_envs(
    run: RunFolder, store: RolloutStore, backend: Literal["auto", "envpool", "sync"], sample: bool = False
) -> LatentEnvs:
    """The rollouts' environment, as workers make it."""
    env_id, key, env_kwargs = store.manifest["env_id"], store.frame_spec.key, store.manifest["env_kwargs"]
    if backend == "auto":
        backend = "envpool" if envpool_shows(env_id, key, env_kwargs) else "sync"
    return LatentEnvs(
        codec=run.vae,
        env_id=env_id,
        backend=backend,
        action_repeat=store.manifest["action_repeat"],
        key=key,
        env_kwargs=env_kwargs,
        sample=sample,
    )


def main(run: cli.Run, config: cli.Flat[EvolveConfig] = EvolveConfig()) -> None:
    """Evolve a controller on RUN/vae's latents into RUN/evolved; resumes from its last checkpoint."""
    folder = RunFolder(run)
    with folder.stage("evolve"):
        run_evolution(folder, config)


if __name__ == "__main__":
    cli.run(main)
