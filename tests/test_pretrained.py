"""The codec and the agent that come with the repository drive at once."""

from __future__ import annotations

import gymnasium
import pytest

from agents.agent import Agent, PixelAgent
from agents.evaluation import evaluate
from scripts.evaluate import PRETRAINED
from worldvae import FrameVAE
from worldvae.frames import to_frames
from worldvae.measures.images import psnr

pytest.importorskip("Box2D")
CARRACING = PRETRAINED / "carracing"


def test_they_are_small():
    sizes = [file.stat().st_size for file in CARRACING.rglob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 2_000_000


def test_the_codec_keeps_the_track():
    vae, env = FrameVAE.load(CARRACING / "vae"), gymnasium.make("CarRacing-v3")
    observation, _ = env.reset(seed=0)
    for _ in range(60):  # the camera comes down
        observation, *_ = env.step(env.action_space.low * 0)
    env.close()
    frames = to_frames(observation[None], vae.config.frame)
    error = (vae.decode(vae.encode(frames).mean.numpy()) / 255 - frames / 255) ** 2
    assert psnr(error.mean()) > 25


def test_the_agent_drives():
    """A random policy earns nothing in these 300 env steps."""
    agent, vae = Agent.load(CARRACING / "agent"), FrameVAE.load(CARRACING / "vae")
    scores = evaluate(
        "CarRacing-v3",
        lambda env: PixelAgent(agent, vae, env.num_envs),
        range(100, 102),
        workers=2,
        action_repeat=4,
        max_episode_steps=300,
    )
    assert min(scores.returns) > 150
