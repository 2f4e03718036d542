"""Agents learn: the dot environment, through rollouts, codec and latents, with both action kinds."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import count

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.agent import Agent, LatentAgent, PixelAgent
from agents.evaluation import evaluate
from agents.learning import LearningConfig, train_agent
from agents.observations import ObservationConfig
from agents.sac import SACConfig
from scripts.evaluate import _random_policy
from tests.dots import SMALL, record_dots
from worldvae import (
    CheckpointError,
    FrameVAE,
    FrameVAEConfig,
    LatentObservation,
    LatentVectorObservation,
    ObjectiveConfig,
    VAETrainingConfig,
    encode,
    make_vector_env,
    train_vae,
)
from worldvae.checkpoint import load_tree, read_json
from worldvae.fit import read_log

MIDDLE = {"target": 12.0}
CONFIG = LearningConfig(
    env_steps=4000,
    updates=4,
    batch_size=128,
    warm_up=20,
    reward_scale=1.0,
    observation=ObservationConfig(stack=2),
    sac=SACConfig(hidden=64, learning_rate=1e-3, discount=0.9),
    device="cpu",
)


@pytest.fixture(scope="module", params=["tests/Dot-v0", "tests/DiscreteDot-v0"])
def pipeline(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    store = record_dots(folder / "rollouts", episodes=40, env_id=request.param, env_kwargs=MIDDLE, frame=SMALL)
    objective = ObjectiveConfig(sigma=0.1, free_bits=0.0)
    vae = train_vae(store, VAETrainingConfig(8, objective=objective, passes=10, device="cpu"), folder / "vae")
    return request.param, folder, vae, encode(store, vae, folder / "latents")


def latent_env(env_id, vae):
    return LatentVectorObservation(make_vector_env(env_id, 8, backend="sync", env_kwargs=MIDDLE), vae)


def test_an_agent_learns_from_pixels_and_plays_from_its_file(pipeline):
    env_id, folder, vae, latents = pipeline
    env = latent_env(env_id, vae)
    train_agent(env, CONFIG, folder / "agent", codec_sha256=vae.sha256, rollouts=latents)
    agent = Agent.load(folder / "agent")
    seeds = range(2_000_000, 2_000_020)
    learned = evaluate(env_id, lambda e: PixelAgent(agent, vae, e.num_envs), seeds, workers=2, env_kwargs=MIDDLE)
    random = evaluate(env_id, _random_policy, seeds, workers=2, env_kwargs=MIDDLE)
    assert learned.ci95[0] > random.ci95[1]
    assert read_log(folder / "agent" / "metrics.jsonl")[-1]["env_steps"] == CONFIG.env_steps // 8 * 8


def test_stable_baselines3_learns_on_the_latent_observations(pipeline):
    sb3 = pytest.importorskip("stable_baselines3")
    env_id, _, vae, _ = pipeline
    env = LatentObservation(gymnasium.make(env_id, **MIDDLE), vae)
    settings = {"gamma": 0.9, "learning_starts": 100, "batch_size": 128, "seed": 0, "device": "cpu"}
    settings["policy_kwargs"] = {"net_arch": [64, 64]}
    if env_id == "tests/Dot-v0":
        model = sb3.SAC("MlpPolicy", env, learning_rate=1e-3, **settings)
        model.learn(1500)
    else:
        model = sb3.DQN("MlpPolicy", env, learning_rate=1e-3, exploration_fraction=0.5, train_freq=1, **settings)
        model.learn(3000)
    returns = []
    for seed in range(2_000_000, 2_000_010):
        z, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(z, deterministic=True)
            z, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    random = evaluate(env_id, _random_policy, range(2_000_000, 2_000_020), workers=2, env_kwargs=MIDDLE)
    assert np.mean(returns) > random.ci95[1] + 3


def test_an_interrupted_agent_goes_on_with_all_it_had_learned(pipeline, tmp_path, monkeypatch):
    env_id, _, vae, latents = pipeline
    from agents.sac import SAC

    step, calls, config = SAC.step, count(1), replace(CONFIG, env_steps=1200)
    stopped = 100 * CONFIG.updates + 1  # some of an environment step's updates are due then

    def interrupted(self, batch):
        if next(calls) == stopped:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(SAC, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_agent(latent_env(env_id, vae), config, tmp_path, codec_sha256=vae.sha256, rollouts=latents)
    saved = load_tree(tmp_path / "training.safetensors")["state"]["sac"]["actor"]
    learned = []

    def watched(self, batch):
        learned.append({name: weight.clone() for name, weight in self.actor.state_dict().items()})
        return step(self, batch)

    monkeypatch.setattr(SAC, "step", watched)
    train_agent(latent_env(env_id, vae), config, tmp_path, codec_sha256=vae.sha256, rollouts=latents)
    assert len(learned) == config.env_steps // 8 * config.updates - stopped
    torch.testing.assert_close(learned[0], saved, rtol=0, atol=0)
    assert read_log(tmp_path / "metrics.jsonl")[-1]["env_steps"] == config.env_steps


def test_env_steps_are_counted_from_the_first_random_action_and_not_exceeded(pipeline, tmp_path):
    env_id, _, vae, _ = pipeline
    config = LearningConfig(env_steps=8 * 30 + 5, warm_up=10, updates=2, device="cpu")
    train_agent(latent_env(env_id, vae), config, tmp_path, codec_sha256=vae.sha256)
    assert read_json(tmp_path / "config.json")["training"]["env_steps"] == 8 * 30
    with pytest.raises(ValueError, match="play more"):
        train_agent(latent_env(env_id, vae), replace(config, env_steps=80), tmp_path, codec_sha256=vae.sha256)


def test_an_agent_refuses_another_codec(pipeline, tmp_path):
    env_id, _, vae, _ = pipeline
    config = LearningConfig(env_steps=8 * 30, warm_up=5, updates=1, device="cpu")
    agent = train_agent(latent_env(env_id, vae), config, tmp_path / "agent", codec_sha256=vae.sha256)
    torch.manual_seed(9)
    FrameVAE(FrameVAEConfig(latent_size=8)).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained with codec"):
        PixelAgent(agent, FrameVAE.load(tmp_path / "other"), 1)


def test_a_saved_agent_acts_the_same_and_other_files_are_refused(pipeline, tmp_path):
    env_id, _, vae, _ = pipeline
    config = LearningConfig(env_steps=8 * 30, warm_up=5, updates=1, device="cpu")
    agent = train_agent(latent_env(env_id, vae), config, tmp_path, codec_sha256=vae.sha256)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours, theirs = (PixelAgent(a, vae, 3).act(frames) for a in (agent, Agent.load(tmp_path)))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(CheckpointError, match="not of kind frame-vae"):
        FrameVAE.load(tmp_path)


def test_an_agent_with_an_action_scale_means_the_same_and_plays_weaker(pipeline, tmp_path):
    env_id, _, vae, _ = pipeline
    config = LearningConfig(env_steps=8 * 30, warm_up=5, updates=1, device="cpu")
    whole = train_agent(latent_env(env_id, vae), config, tmp_path / "whole", codec_sha256=vae.sha256)
    moves = sum(whole.spec.action_space.shape)
    if not moves:
        with pytest.raises(ValueError, match="of a Box action"):
            replace(whole.spec, action_scale=(0.5,))
        return
    scale = tuple(0.5 / (i + 1) for i in range(moves))
    train_agent(
        latent_env(env_id, vae), replace(config, action_scale=scale), tmp_path / "weaker", codec_sha256=vae.sha256
    )
    players = [PixelAgent(agent, vae, 3) for agent in (whole, Agent.load(tmp_path / "weaker"))]
    for frames in np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32, 3), dtype=np.uint8):
        strong, weak = (player.act(frames) for player in players)
        np.testing.assert_allclose(weak, strong * scale, rtol=1e-6)
        assert weak.dtype == strong.dtype
    for wrong in ((0.5,) * (moves + 1), (0.0,) * moves, (1.5,) * moves):
        with pytest.raises(ValueError, match="a share in \\(0, 1\\] for each float of a Box action"):
            replace(whole.spec, action_scale=wrong)
    with pytest.raises(ValueError, match="an action space with 0 in it"):
        replace(whole.spec, action_scale=scale, action_space=Box(1, 2, (moves,), np.float32))
    with pytest.raises(ValueError, match="for each float of a Box action"):
        replace(whole.spec, action_scale=scale, action_space=Box(0, 9, (moves,), np.int64))


def test_an_agent_of_samples_acts_on_draws_from_the_posterior(pipeline, tmp_path):
    """As in the dream that it learned in."""
    env_id, _, vae, _ = pipeline
    config = LearningConfig(env_steps=8 * 30, warm_up=5, updates=1, device="cpu")
    agent = train_agent(latent_env(env_id, vae), config, tmp_path, codec_sha256=vae.sha256)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    agent.spec = replace(agent.spec, sampled=True)
    drawn = vae.encode(frames).sample(torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(PixelAgent(agent, vae, 3).act(frames), LatentAgent(agent, 3).act(drawn))


class Mortal(gymnasium.Env):
    """Rewards of 1 until an end that nothing foretells, in a fifth of the steps."""

    observation_space, action_space = Box(-1, 1, (3,), np.float32), Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._anything(), {}

    def step(self, action):
        return self._anything(), 1.0, bool(self.np_random.random() < 0.2), False, {}

    def _anything(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


@pytest.mark.parametrize(("endless", "value"), [(False, 1 / (1 - 0.5 * 0.8)), (True, 1 / (1 - 0.5))])
def test_values_are_those_of_a_life_that_ends_or_of_one_that_goes_on(tmp_path, endless, value):
    """The return in closed form: q = 1 + discount * (chance to go on) * q."""
    env = SyncVectorEnv([Mortal] * 8, autoreset_mode=AutoresetMode.DISABLED)
    sac = SACConfig(hidden=32, discount=0.5, learning_rate=1e-3, initial_alpha=1e-6, tau=0.05)
    config = replace(CONFIG, env_steps=2400, warm_up=100, endless=endless, sac=sac)
    train_agent(env, config, tmp_path, codec_sha256="")
    assert read_log(tmp_path / "metrics.jsonl")[-1]["q"] == pytest.approx(value, rel=0.05)
