"""The project's own SAC beside stable-baselines3's SAC and sb3-contrib's TQC and CrossQ.

All see the same latent observations, start from the same replay (the run's encoded rollouts), take
as many gradient steps after each step of the environments, and have the same sizes, rates and wall
time; what only a library has keeps its default. Their most likely actions are then judged on
Gymnasium's own environment.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from agents.agent import Agent, AgentSpec, PixelAgent
from agents.evaluation import SELECTION_SEEDS, evaluate, first_seed
from agents.learning import Learner, LearningConfig
from agents.observations import LatentStack, action_size, from_vector, observation_size
from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.checkpoint import write_record
from worldvae.environments import CutWithoutReward, make_vector_env
from worldvae.fit import FitConfig, fit
from worldvae.latents import LatentStore
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE
from worldvae.wrappers import LatentVectorObservation

try:
    from sb3_contrib import TQC, CrossQ
    from stable_baselines3 import SAC
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    sys.exit("error: this benchmark needs: pip install 'worldvae[rl]'")

Name = Literal["own", "sb3-sac", "sb3-tqc", "sb3-crossq"]
ALGORITHMS: dict[str, Any] = {"sb3-sac": SAC, "sb3-tqc": TQC, "sb3-crossq": CrossQ}


@dataclass(frozen=True)
class Learned:
    """An actor (``act`` as ``GaussianActor``'s) and what it did; returns are its last 30, exploring."""

    actor: Any
    updates: int
    env_steps: int
    returns: list[float]
    seconds: float


def learn_own(learner: Learner, seconds: float) -> Learned:
    """The project's learner in the project's fit loop, without checkpoints on the way."""
    with tempfile.TemporaryDirectory() as folder:
        limits = FitConfig(10**9, log_every=1000, checkpoint_every=10**9, seconds=seconds)
        log = fit(learner.sac.step, learner.batches, learner, limits, Path(folder), name="own")
    step, elapsed = int(log[-1]["step"]), log[-1]["seconds"]
    return Learned(learner.sac.averaged, step, learner.env_steps, list(learner.returns), elapsed)


def learn_sb3(name: str, learner: Learner, seconds: float) -> Learned:
    """One of stable-baselines3's off-policy algorithms with the learner's settings and replay."""
    config, sac, env = learner.config, learner.config.sac, StackedVecEnv(learner)
    sizes = {"batch_size": config.batch_size, "buffer_size": config.replay_capacity, "learning_starts": 0}
    rates = {"learning_rate": sac.learning_rate, "gamma": sac.discount, "ent_coef": f"auto_{sac.initial_alpha:.4f}"}
    rates |= {} if name == "sb3-crossq" else {"tau": sac.tau}  # CrossQ has no target networks
    order = {"train_freq": 1, "gradient_steps": config.updates, "seed": config.seed, "device": learner.device}
    net = {"net_arch": [sac.hidden, sac.hidden]}
    model = ALGORITHMS[name]("MlpPolicy", env, policy_kwargs=net, **sizes, **rates, **order)
    columns = {key: c.cpu().numpy() for key, c in learner.replay.state_dict()["columns"].items()}
    for at in range(0, len(columns["continues"]) - env.num_envs + 1, env.num_envs):
        rows = {key: column[at : at + env.num_envs] for key, column in columns.items()}
        seen, following, ends = rows["observations_t"], rows["observations_tp1"], 1 - rows["continues"]
        model.replay_buffer.add(seen, following, rows["actions_t"], rows["rewards_tp1"], ends, [{}] * len(ends))
    begin = time.monotonic()
    model.learn(10**9, callback=lambda *_: time.monotonic() < begin + seconds)
    elapsed = time.monotonic() - begin
    model.policy.set_training_mode(False)
    actor = SimpleNamespace(act=lambda seen, _: model.actor(seen, deterministic=True))
    return Learned(actor, model._n_updates, env.env_steps, list(env.returns), elapsed)


class StackedVecEnv(VecEnv):
    """A learner's environment as stable-baselines3 wants it: observations stacked, rewards clipped
    and scaled, actions from [-1, 1], all as the learner does it."""

    def __init__(self, learner: Learner):
        self.env, self.config, self.space = learner.env, learner.config, learner.space
        width = observation_size(self.config.observation, learner.latent_size, self.space)
        size, n = action_size(self.space), self.env.num_envs
        self.stack = LatentStack(self.config.observation, n, learner.latent_size, size)
        self.env_steps, self.running = 0, np.zeros(n)
        self.returns: deque[float] = deque(maxlen=30)
        super().__init__(n, Box(-np.inf, np.inf, (width,), np.float32), Box(-1, 1, (size,), np.float32))

    def reset(self) -> NDArray[np.float32]:
        self.stack.reset(np.ones(self.num_envs, bool))
        return self.stack.push(self.env.reset()[0])

    def step_async(self, actions: NDArray[np.float32]) -> None:
        self.stack.acted(actions)
        self.actions = from_vector(actions, self.space)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], list[dict[str, Any]]]:
        latents, rewards, terminated, truncated, info = self.env.step(self.actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in done]
        self.env_steps += int(info["env_steps"].sum())
        self.running += rewards
        if done.any():
            last = self.stack.peek(latents)
            for i in np.flatnonzero(done):
                infos[i] = {"terminal_observation": last[i], "TimeLimit.truncated": not terminated[i]}
            self.returns.extend(self.running[done].tolist())
            self.running[done] = 0
            latents, _ = self.env.reset(options={"reset_mask": done})
            self.stack.reset(done)
        learned_from = np.clip(rewards, *self.config.reward_clip) * self.config.reward_scale
        return self.stack.push(latents), learned_from.astype(np.float32), done, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, *_: Any, **__: Any) -> list[Any]:
        return [None] * self.num_envs

    set_attr = env_method = env_is_wrapped = get_attr  # type: ignore[assignment]  # nobody asks


def measure(name: Name, run: RunFolder, config: LearningConfig, minutes: float, episodes: int) -> dict[str, Any]:
    """Lets one learner learn for its minutes and judges it on selection seeds."""
    vae, latents, manifest = FrameVAE.load(run.vae), LatentStore(run.latents), RolloutStore(run.rollouts).manifest
    latents.check_codec(vae)
    env_id, repeat, first = manifest["env_id"], manifest["action_repeat"], first_seed(config.seed)
    env = make_vector_env(env_id, 16, backend="envpool", seed=first, action_repeat=repeat)
    learner = Learner(LatentVectorObservation(CutWithoutReward(env, 120), vae), config, latents)
    seconds = 60 * minutes
    learned = learn_own(learner, seconds) if name == "own" else learn_sb3(name, learner, seconds)
    env.close()
    sizes = (config.observation, vae.latent_size, vae.sha256, env.single_action_space, repeat, config.sac.hidden)
    agent = Agent(AgentSpec(*sizes))
    agent.actor = learned.actor
    seeds = range(SELECTION_SEEDS, SELECTION_SEEDS + episodes)
    scores = evaluate(
        env_id, lambda judged: PixelAgent(agent, vae, judged.num_envs), seeds, action_repeat=repeat, name=name
    )
    return {
        "updates_per_second": learned.updates / learned.seconds,
        "env_steps": learned.env_steps,
        "exploring_return": float(np.mean(learned.returns)) if learned.returns else None,
        **scores.as_json(),
        **cli.provenance(),
    }


def main(
    run: cli.Run,
    learners: tuple[Name, ...] = ("own", "sb3-sac", "sb3-tqc", "sb3-crossq"),
    minutes: float = 5,
    episodes: int = 10,
    seed: int = 0,
    out: Path = Path("benchmarks/learners.json"),
) -> None:
    """Give each learner so many minutes on RUN's codec; rows of learners not asked for stay in OUT."""
    for name in learners:
        row = measure(name, RunFolder(run), LearningConfig(seed=seed), minutes, episodes)
        write_record(out, {**(json.loads(out.read_text()) if out.exists() else {}), name: row})
    shown = ("updates_per_second", "env_steps", "exploring_return", "mean", "sd")
    rows = [(name, *(row[key] for key in shown)) for name, row in json.loads(out.read_text()).items()]
    print(cli.table([("learner", *shown), *rows]))


if __name__ == "__main__":
    cli.run(main)
