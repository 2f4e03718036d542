"""Stage 5, inside the dream: an actor-critic learns in dreams of the run's world model; reality only selects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from agents.actor_critic import ActorCriticConfig, learn_in_dream
from agents.agent import Agent, AgentSpec, PixelAgent
from agents.dream import DreamConfig
from agents.evaluation import first_selection_seed
from agents.observations import Z_ALONE
from scripts import cli
from scripts.dreaming import awake, dreaming
from scripts.run_folder import RunFolder
from scripts.train_dynamics import memory_of
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE


@dataclass(frozen=True)
class DreamAgentConfig:
    """In which dreams to learn, and how.

    Attributes:
        memory: whose h the actor sees beside z: RUN/dynamics', which dreams, or nobody's.
        dream: of what kind.
        context: real steps that a dream's beginning has behind it; 0: dreams begin where episodes do.
        starts: moments of real play that dreams begin at, at most (about 5 KB each).
        random_play: dreams begin only in what no agent has played: M knows agents' play by heart, and it has fewer
            dangers.
        select_episodes: in reality, each time; on selection seeds, and counted.
        workers: environments stepped in parallel processes.
        dreamers: actors that learn side by side, and act as one.
        learning: the actor-critic's.
    """

    memory: Literal["none", "trained"] = "trained"
    dream: DreamConfig = field(default_factory=DreamConfig)
    context: int = 0
    starts: int = 10_000
    random_play: bool = False
    select_episodes: int = 16
    workers: int = 4
    dreamers: int = 1
    learning: ActorCriticConfig = field(default_factory=ActorCriticConfig)


def learn(run: RunFolder, config: DreamAgentConfig) -> Agent:
    """Trains the agent in dreams of ``run``'s world model."""
    store, vae, seed = RolloutStore(run.rollouts), FrameVAE.load(run.vae), config.learning.seed
    memory = memory_of(run, config.memory, vae, store.action_space, seed)
    spec = AgentSpec(
        observation=Z_ALONE,
        latent_size=vae.latent_size,
        codec_sha256=vae.sha256,
        action_space=store.action_space,
        action_repeat=store.manifest["action_repeat"],
        hidden=config.learning.hidden,
        memory=memory.config if memory else None,
        sampled=True,
        actors=config.dreamers,
    )
    torch.manual_seed(seed)

    def select(agent: Agent, asked: int) -> tuple[float, int]:
        first = first_selection_seed(seed) + asked * config.select_episodes
        seeds = range(first, first + config.select_episodes)
        scores = awake(store, lambda env: PixelAgent(agent, vae, env.num_envs), seeds, config.workers, "selection")
        return scores.mean, sum(scores.lengths)

    model, starts = dreaming(run, store, vae, config.context, seed, config.starts, config.random_play)
    return learn_in_dream(Agent(spec, memory), model, starts, config.dream, config.learning, run.agent, select)


def main(run: cli.Run, config: cli.Flat[DreamAgentConfig] = DreamAgentConfig()) -> None:
    """Train an agent in dreams of RUN/dynamics into RUN/agent; resumes from its last checkpoint."""
    folder = RunFolder(run)
    with folder.stage("train_agent"):
        learn(folder, config)


if __name__ == "__main__":
    cli.run(main)
