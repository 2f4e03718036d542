"""Stage 1: play an environment and store its episodes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from agents.agent import Agent, PixelAgent
from agents.evaluation import SELECTION_SEEDS, spread
from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.devices import on_threads
from worldvae.environments import Backend, CutWithoutReward, closing, make_vector_env
from worldvae.frames import FrameSpec
from worldvae.measures.images import diversity
from worldvae.policies import BehaviourPolicy, CorrelatedConfig, random_policy
from worldvae.record import record
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE


@dataclass(frozen=True)
class CollectConfig:
    """What to play, how, and what to keep.

    Attributes:
        env: any Gymnasium id with image observations, or that renders rgb_array.
        episodes: how many are listed, under first_seed, first_seed + 1, ...
        backend: auto takes EnvPool where it is installed and has images of the id, else processes.
        num_envs: environments stepped together.
        action_repeat: env steps that each action lasts.
        max_episode_steps: truncate earlier than the id's own limit.
        patience: cut an episode after so many env steps without a positive reward.
        env_kwargs: arguments of the environment, such as '{"continuous": false}'.
        frame: how pixels become frames.
        policy: who acts; agent and evolved are those saved in the run folder agent_run.
        correlated: how correlated actions wander.
        agent_run: see policy.
        first_seed: training seeds lie below 1,000,000.
    """

    env: str = "CarRacing-v3"
    episodes: int = 64
    backend: Backend = "auto"
    num_envs: int = 16
    action_repeat: int = 1
    max_episode_steps: int | None = None
    patience: int | None = None
    env_kwargs: cli.JSON = field(default_factory=dict)
    frame: FrameSpec = field(default_factory=FrameSpec)
    policy: Literal["uniform", "correlated", "agent", "evolved"] = "correlated"
    correlated: CorrelatedConfig = field(default_factory=CorrelatedConfig)
    agent_run: Path | None = None
    first_seed: int = 0


def collect(run: RunFolder, config: CollectConfig) -> RolloutStore:
    """Records the listed episodes that ``run`` does not hold yet, and prints a summary."""
    if config.episodes < 1 or config.first_seed < 0 or config.first_seed + config.episodes > SELECTION_SEEDS:
        raise ValueError(
            f"rollouts need at least one episode and seeds in 0..{SELECTION_SEEDS - 1:,}, the training seeds"
        )
    env = make_vector_env(
        config.env,
        config.num_envs,
        backend=config.backend,
        seed=config.first_seed,
        action_repeat=config.action_repeat,
        max_episode_steps=config.max_episode_steps,
        frame=config.frame,
        env_kwargs=config.env_kwargs,
    )
    if config.patience is not None:
        env = CutWithoutReward(env, config.patience)
    with closing(env), on_threads(1):
        policy = _policy(config, env.single_action_space, env.num_envs)
        store = RolloutStore.create(
            run.rollouts,
            env_id=config.env,
            frame_spec=config.frame,
            action_space=env.single_action_space,
            action_repeat=config.action_repeat,
            env_kwargs=config.env_kwargs,
        )
        listed = range(config.first_seed, config.first_seed + config.episodes)
        missing = sorted(set(listed) - store.seeds)
        _check_players(store, listed, config.policy)
        begin, steps_before = time.monotonic(), store.env_steps
        episodes = store.append_all(record(env, policy, config.frame, missing, config.policy))
        for _ in tqdm(episodes, desc="collect", total=len(missing), unit="episode", dynamic_ncols=True):
            pass
        seconds = time.monotonic() - begin
        print(summary(store, positions(store, listed)))
        print(f"{(store.env_steps - steps_before) / seconds:.0f} env steps/s")
        return store


def _check_players(store: RolloutStore, listed: range, policy: str) -> None:
    """Raises ValueError where episodes of the listed seeds were played by another policy."""
    others = {store.header(i)["policy"] for i in positions(store, listed)} - {policy}
    if others:
        raise ValueError(
            f"{store.path} has episodes of seeds {listed[0]}..{listed[-1]} by policy {', '.join(sorted(others))}: "
            "choose another --first-seed"
        )


def positions(store: RolloutStore, seeds: range) -> list[int]:
    """Where the episodes of these seeds are."""
    return [i for i in range(len(store)) if store.header(i)["seed"] in seeds]


def returns_of(store: RolloutStore, episodes: list[int]) -> list[float]:
    """What each of these episodes earned."""
    return [float(store.episodes.read(store.indices[i], ("rewards",))[0]["rewards"].sum()) for i in episodes]


def summary(store: RolloutStore, episodes: list[int]) -> str:
    """Episodes, lengths, returns and frame diversity in words, with warnings where needed."""
    headers = [store.header(i) for i in episodes]
    returns = returns_of(store, episodes)
    lengths = [header["env_steps"] for header in headers]
    varied = diversity(np.concatenate([store.visible_frames(i)[::4].copy() for i in episodes[:64]]))
    lines = [
        f"{len(episodes)} episodes, {sum(lengths)} env steps, length {np.mean(lengths):.0f} "
        f"({min(lengths)}..{max(lengths)}), return {spread(float(np.mean(returns)), float(np.std(returns)), 1)}",
        f"frames: pixels vary by {varied.pixel_sd:.1f} grey levels (healthy: above 5), "
        f"{varied.distinct:.0%} distinct (healthy: above 50%)",
    ]
    if varied.constant:
        lines.append(f"warning: {varied.constant} sampled frames show one single colour, {varied.black} of them black")
    if varied.pixel_sd < 5 or varied.distinct < 0.5:
        lines.append("warning: the frames hardly differ; try --policy correlated, or more episodes")
    return "\n".join(lines)


def _policy(config: CollectConfig, space: Any, num_envs: int) -> BehaviourPolicy:
    if config.policy in ("uniform", "correlated"):
        return random_policy(config.policy, space, num_envs, config.first_seed, config.correlated)
    if config.agent_run is None:
        raise ValueError(f"--policy {config.policy} needs --agent-run, the folder of the run that trained it")
    source = RunFolder(config.agent_run)
    source = source.best if config.policy == "agent" else source
    learned = source.agent if config.policy == "agent" else source.evolved
    vae = FrameVAE.load(source.vae)
    if vae.config.frame != config.frame:
        raise ValueError(
            f"the agent in {source.path} sees {vae.config.frame}, not the frames to collect, {config.frame}"
        )
    agent = Agent.load(learned)
    if agent.spec.action_repeat != config.action_repeat:
        raise ValueError(
            f"the agent in {source.path} decides every {agent.spec.action_repeat} env steps: collect with "
            f"--action-repeat {agent.spec.action_repeat}, not {config.action_repeat}"
        )
    return PixelAgent(agent, vae, num_envs)


def main(run: cli.Run, config: cli.Flat[CollectConfig] = CollectConfig()) -> None:
    """Play an environment and store its episodes in RUN/rollouts; goes on where it was cut off."""
    folder = RunFolder(run)
    with folder.stage("collect"):
        collect(folder, config)


if __name__ == "__main__":
    cli.run(main)
