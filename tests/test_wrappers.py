"""Latent observations: Gymnasium's contract, in all autoreset modes, and an agent that learns."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.pixel_env import DotEnv
from worldvae import FrameSpec, FrameVAE, FrameVAEConfig, LatentObservation, LatentVectorObservation, to_frames


@pytest.fixture(scope="module")
def vae() -> FrameVAE:
    torch.manual_seed(0)
    return FrameVAE(FrameVAEConfig(latent_size=8)).eval()


def vector_of_dots(mode: AutoresetMode, lengths=(4, 6, 9)) -> SyncVectorEnv:
    return SyncVectorEnv([partial(DotEnv, length=length) for length in lengths], autoreset_mode=mode)


def actions_of(env: SyncVectorEnv, steps: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(steps)]


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning", "ignore:.*is different from the unwrapped:UserWarning")
@pytest.mark.parametrize("sample", [False, True])
def test_it_passes_gymnasiums_own_check(vae, sample):
    check_env(LatentObservation(DotEnv(), vae, sample=sample), skip_render_check=True)


def test_a_made_environment_keeps_a_spec_that_names_the_wrapper(vae):
    env = LatentObservation(gymnasium.make("tests/Dot-v0"), vae)
    assert env.spec.additional_wrappers[-1].name == "LatentObservation"
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (8,), np.float32)


def test_an_observation_is_the_posterior_mean_of_the_frame(vae):
    env, plain = LatentObservation(DotEnv(), vae, keep_frame=True), DotEnv()
    z, info = env.reset(seed=5)
    pixels, _ = plain.reset(seed=5)
    np.testing.assert_array_equal(info["frame"], pixels)
    np.testing.assert_allclose(z, vae.encode(to_frames(pixels, vae.config.frame)).mean, atol=1e-6)
    z, *_, info = env.step(np.ones(1, np.float32))
    pixels = plain.step(np.ones(1, np.float32))[0]
    np.testing.assert_array_equal(info["frame"], pixels)
    np.testing.assert_allclose(z, vae.encode(to_frames(pixels, vae.config.frame)).mean, atol=1e-6)


def test_samples_follow_the_seed_and_differ_from_the_mean(vae):
    env = LatentObservation(DotEnv(), vae, sample=True)
    first, again, other = env.reset(seed=1)[0], env.reset(seed=1)[0], env.reset()[0]
    mean = LatentObservation(DotEnv(), vae).reset(seed=1)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, mean)
    assert not np.allclose(first, other)


def test_a_vector_of_samples_follows_the_seed_and_a_masked_reset_leaves_the_others(vae):
    env = LatentVectorObservation(vector_of_dots(AutoresetMode.DISABLED), vae, sample=True)
    means, _ = LatentVectorObservation(vector_of_dots(AutoresetMode.DISABLED), vae).reset(seed=1)
    first, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - means).max(1) > 0.01).all()
    partly, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(partly[1:], first[1:])
    assert not np.array_equal(partly[0], first[0])


def test_dictionary_observations_are_read_by_the_codecs_key():
    codec = FrameVAE(FrameVAEConfig(FrameSpec(key="screen"), latent_size=8)).eval()
    z, _ = LatentObservation(DotEnv(dictionary=True), codec).reset(seed=0)
    assert z.shape == (8,)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_wrapper_encodes_just_what_the_environment_shows(vae, mode):
    plain, env = vector_of_dots(mode), LatentVectorObservation(vector_of_dots(mode), vae, keep_frame=True)
    assert env.single_observation_space.shape == (8,)
    assert env.observation_space.shape == (3, 8)
    pixels, _ = plain.reset(seed=3)
    z, info = env.reset(seed=3)
    ends = 0
    for actions in actions_of(plain, 25):
        assert z.dtype == np.float32
        assert z.shape == (3, 8)
        frames = to_frames(pixels, vae.config.frame)
        np.testing.assert_array_equal(info["frame"], pixels)
        np.testing.assert_allclose(z, vae.encode(frames).mean, atol=1e-5)
        pixels, rewards, terminated, truncated, plain_info = plain.step(actions)
        z, our_rewards, our_terminated, our_truncated, info = env.step(actions)
        np.testing.assert_array_equal(rewards, our_rewards)
        np.testing.assert_array_equal(terminated, our_terminated)
        np.testing.assert_array_equal(truncated, our_truncated)
        done = terminated | truncated
        ends += done.sum()
        if mode == AutoresetMode.SAME_STEP and done.any():
            for i in range(3):
                if done[i]:
                    last = vae.encode(to_frames(plain_info["final_obs"][i], vae.config.frame)).mean
                    np.testing.assert_allclose(info["final_obs"][i], last, atol=1e-5)
                else:
                    assert info["final_obs"][i] is None
        if mode == AutoresetMode.DISABLED and done.any():
            pixels, _ = plain.reset(options={"reset_mask": done.copy()})
            z, info = env.reset(options={"reset_mask": done.copy()})
    assert ends > 5


def test_the_vector_wrapper_equals_a_vector_of_wrapped_environments(vae):
    ours = LatentVectorObservation(vector_of_dots(AutoresetMode.NEXT_STEP), vae)
    makers = [partial(lambda length: LatentObservation(DotEnv(length=length), vae), length) for length in (4, 6, 9)]
    theirs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    np.testing.assert_allclose(ours.reset(seed=0)[0], theirs.reset(seed=0)[0], atol=1e-5)
    for actions in actions_of(theirs, 15):
        for a, b in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_of_dictionaries_is_read_by_the_codecs_key(mode):
    torch.manual_seed(0)
    codec = FrameVAE(FrameVAEConfig(FrameSpec(key="screen"), latent_size=8)).eval()
    env = LatentVectorObservation(
        SyncVectorEnv([partial(DotEnv, length=3, dictionary=True)] * 2, autoreset_mode=mode), codec
    )
    plain = LatentVectorObservation(SyncVectorEnv([partial(DotEnv, length=3)] * 2, autoreset_mode=mode), codec)
    for wrapped in (env, plain):
        wrapped.action_space.seed(0)
    np.testing.assert_array_equal(env.reset(seed=0)[0], plain.reset(seed=0)[0])
    for _ in range(3):
        actions = env.action_space.sample()
        ours, theirs = env.step(actions), plain.step(actions)
        np.testing.assert_array_equal(ours[0], theirs[0])
    if mode == AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(np.stack(ours[4]["final_obs"]), np.stack(theirs[4]["final_obs"]))


def test_images_of_a_wrong_dtype_are_named(vae):
    class Floats(gymnasium.ObservationWrapper):
        def observation(self, observation):
            return observation / 255

    with pytest.raises(TypeError, match="uint8"):
        LatentObservation(Floats(DotEnv()), vae).reset()


@pytest.mark.parametrize("shape", [(3, 24, 24), (4, 24, 24), (5,)])
def test_what_is_no_image_is_refused_before_it_plays(vae, shape):
    """Channels first, grey frames in a stack, a vector."""

    class Other(DotEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    with pytest.raises(ValueError, match=r"no uint8 images \[H, W\]"):
        LatentObservation(Other(), vae)
    with pytest.raises(ValueError, match=r"no uint8 images \[H, W\]"):
        LatentVectorObservation(SyncVectorEnv([Other]), vae)
