"""Stage 5: train an agent on latent observations."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.agent import Agent
from agents.evaluation import first_seed
from agents.learning import LearningConfig, train_agent
from scripts import cli
from scripts.run_folder import RunFolder
from scripts.train_dynamics import Memory, memory_of
from worldvae.environments import Backend, CutWithoutReward, closing, make_vector_env
from worldvae.latents import LatentStore
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE
from worldvae.wrappers import LatentVectorObservation


@dataclass(frozen=True)
class AgentConfig:
    """Where to learn, and how.

    Attributes:
        env: learn in this environment instead of the rollouts' own: the same task with other rewards, say.
        backend: auto takes EnvPool where it is installed and has images of the id, else processes.
        num_envs: environments stepped together.
        patience: an episode is cut, as by a time limit, after so many env steps without a positive
            reward (training only); by default none is.
        from_rollouts: the replay starts with the encoded rollouts.
        memory: whose h the agent sees beside z: nobody's, an untrained world model's, or RUN/dynamics'.
        learning: how the agent plays and learns.
    """

    env: str | None = None
    backend: Backend = "auto"
    num_envs: int = 16
    patience: int | None = None
    from_rollouts: bool = True
    memory: Memory = "none"
    learning: LearningConfig = field(default_factory=LearningConfig)


def train(run: RunFolder, config: AgentConfig) -> Agent:
    """Trains the agent in the rollouts' environment (or ``config.env``), seen through the run's codec."""
    store, vae = RolloutStore(run.rollouts), FrameVAE.load(run.vae)
    latents = LatentStore(run.latents) if config.from_rollouts else None
    if latents is not None:
        latents.check_codec(vae)
    env = make_vector_env(
        config.env or store.manifest["env_id"],
        config.num_envs,
        backend=config.backend,
        seed=first_seed(config.learning.seed),
        action_repeat=store.manifest["action_repeat"],
        frame=store.frame_spec,
        env_kwargs=store.manifest["env_kwargs"],
    )
    if config.patience is not None:
        env = CutWithoutReward(env, config.patience)
    with closing(env):
        return train_agent(
            LatentVectorObservation(env, vae),
            config.learning,
            run.agent,
            codec_sha256=vae.sha256,
            action_repeat=store.manifest["action_repeat"],
            rollouts=latents,
            memory=memory_of(run, config.memory, vae, store.action_space, config.learning.seed),
        )


def main(run: cli.Run, config: cli.Flat[AgentConfig] = AgentConfig()) -> None:
    """Train an agent on RUN/vae's latents into RUN/agent; resumes from its last checkpoint."""
    folder = RunFolder(run)
    with folder.stage("train_agent"):
        train(folder, config)


if __name__ == "__main__":
    cli.run(main)
