"""CarRacing that looks otherwise is the same task: only what is said to differ does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import agents.shifted as shifted
from scripts.evaluate import PRETRAINED
from worldvae import FrameVAE
from worldvae.environments import make_vector_env
from worldvae.frames import to_frames

pytest.importorskip("Box2D")

SHIFTED = ["CarRacingColours-v0", "CarRacingBars-v0", "CarRacingBlob-v0"]


def played(env_id: str, seed: int = 3, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [steps + 1, 96, 96, 3] and rewards of one drive, a gentle curve."""
    env = gymnasium.make(env_id)
    frames, rewards = [env.reset(seed=seed)[0]], []
    for t in range(steps):
        frame, reward, *_ = env.step(np.array([0.3 * np.sin(t / 7), 0.4, 0.0], np.float32))
        frames.append(frame)
        rewards.append(reward)
    env.close()
    return np.stack(frames), np.array(rewards)


@pytest.mark.parametrize("name", SHIFTED)
def test_the_drive_is_the_same_and_looks_otherwise(name):
    (frames, rewards), (official, official_rewards) = played(f"agents.shifted:{name}"), played("CarRacing-v3")
    np.testing.assert_array_equal(rewards, official_rewards)
    assert frames.dtype == np.uint8
    assert frames.shape == official.shape
    assert 0.01 < (frames != official).any(-1).mean() < 0.95


def test_bars_and_blob_cover_their_place_and_no_other():
    official = played("CarRacing-v3")[0]
    bars = played("agents.shifted:CarRacingBars-v0")[0]
    assert not bars[:, :, : shifted.BAR].any()
    assert not bars[:, :, -shifted.BAR :].any()
    np.testing.assert_array_equal(bars[:, :, shifted.BAR : -shifted.BAR], official[:, :, shifted.BAR : -shifted.BAR])
    blob = played("agents.shifted:CarRacingBlob-v0")[0]
    changed = (blob != official).any((0, 3))
    row, column, radius = shifted.BLOB
    assert changed.sum() == pytest.approx(np.pi * radius**2, rel=0.1)
    assert (blob[:, row, column] == (255, 0, 0)).all()


def test_colours_differ_by_episode_and_follow_from_its_seed():
    one, again, other = (played("agents.shifted:CarRacingColours-v0", seed, 2)[0][-1] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    official = played("CarRacing-v3", 3, 2)[0][-1]
    corner, usual = (frame[:20].reshape(-1, 3).mean(0) for frame in (one, official))
    assert 1 < np.abs(corner - usual).max() <= shifted.SHIFT
    assert np.abs(corner - other[:20].reshape(-1, 3).mean(0)).max() > 1


@pytest.mark.parametrize("name", SHIFTED)
def test_a_codec_that_has_not_seen_them_calls_their_frames_novel(name):
    vae = FrameVAE.load(PRETRAINED / "carracing" / "vae")

    def novelty(env_id: str) -> np.ndarray:
        return vae.novelty(to_frames(played(env_id, steps=90)[0][50::5], vae.config.frame))  # the camera is down

    assert novelty(f"agents.shifted:{name}").min() > novelty("CarRacing-v3").max()


@pytest.mark.parametrize("name", SHIFTED)
def test_agents_play_them_as_any_other_environment(name):
    env = make_vector_env(f"agents.shifted:{name}", 2, backend="sync", action_repeat=4)
    frames, _ = env.reset(seed=[1, 2])
    assert frames.shape == (2, 96, 96, 3)
    env.close()
