"""Encoded episodes as sequences on the device, against the plain episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.sequences import Sequences, Trajectories, draw
from agents.world_model import WorldModel, WorldModelConfig
from worldvae.batches import sequence_batches
from worldvae.latents import LatentEpisode
from worldvae.vae import DiagonalGaussian

CPU = torch.device("cpu")
SPACE = Discrete(3, start=-1)
Place = tuple[int, int]
"""(episode, t) of a transition."""


def make_episode(length: int, seed: int, blanked: tuple[int, ...] = ()) -> LatentEpisode:
    """Random codes of Z 2; ``blanked`` frames were not seen; every second one is terminated."""
    random = np.random.default_rng(seed)
    visible = ~np.isin(np.arange(length + 1), blanked)
    mean, logvar = random.standard_normal((2, length + 1, 2)).astype(np.float32)
    actions, rewards = random.integers(-1, 2, length), random.standard_normal(length).astype(np.float32)
    return LatentEpisode(mean, logvar, actions, rewards, visible, seed % 2 == 0, seed % 2 == 1)


def make_episodes(lengths: list[int]) -> list[LatentEpisode]:
    """Episodes of these lengths, the last frame of every third one blanked."""
    return [make_episode(n, seed=i, blanked=(n,) if i % 3 == 1 else ()) for i, n in enumerate(lengths)]


def places(sequences: Sequences, episodes: list[LatentEpisode]) -> dict[tuple[int, int], Place]:
    """Where each transition (row of the batch, step) is from; codes are unlike each other."""
    origin = {tuple(z): (e, t) for e, episode in enumerate(episodes) for t, z in enumerate(episode.mean.tolist())}
    there = np.argwhere(sequences.valid.numpy()).tolist()
    return {(b, t): origin[tuple(sequences.codes.mean[b, t].tolist())] for b, t in there}


lists_of_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@settings(max_examples=50)
@given(lengths=lists_of_lengths, batch_size=st.integers(1, 5), most_steps=st.integers(1, 8))
def test_every_transition_comes_with_all_that_was_recorded_of_it(lengths, batch_size, most_steps):
    episodes = make_episodes(lengths)
    trajectories = Trajectories(episodes, SPACE, CPU)
    seen: list[Place] = []
    batches = sequence_batches(lengths, batch_size, most_steps, seed=0)
    while len(seen) < sum(lengths):
        s = trajectories.sequences(*next(batches))
        for (b, step), (e, t) in places(s, episodes).items():
            episode, last = episodes[e], t == lengths[e] - 1
            for now, ahead in ((step, t), (step + 1, t + 1)):
                np.testing.assert_array_equal(s.codes.mean[b, now], episode.mean[ahead])
                np.testing.assert_array_equal(s.codes.logvar[b, now], episode.logvar[ahead])
            np.testing.assert_array_equal(s.a_t[b, step], np.eye(3)[episode.actions[t] + 1])
            assert s.rewards_tp1[b, step] == episode.rewards[t]
            assert s.terminated[b, step] == (last and episode.terminated)
            assert s.seen_tp1[b, step] == episode.visible[t + 1]
            seen.append((e, t))
        assert not s.seen_tp1[~s.valid].any()
        for x in (s.a_t, s.rewards_tp1, s.seen_tp1):
            assert torch.equal(s.real(x), x[s.valid])
    assert sorted(seen) == [(e, t) for e, n in enumerate(lengths) for t in range(n)]


@settings(max_examples=50)
@given(lengths=lists_of_lengths, most=st.integers(1, 9))
def test_whole_episodes_hold_every_transition_once_and_from_its_start(lengths, most):
    episodes = make_episodes(lengths)
    seen: list[Place] = []
    for s in Trajectories(episodes, SPACE, CPU).whole(most):
        assert len(s.valid) <= most
        found = places(s, episodes)
        assert all(step == t for (_, step), (_, t) in found.items())
        seen += found.values()
    assert sorted(seen) == [(e, t) for e, n in enumerate(lengths) for t in range(n)]


@settings(max_examples=30)
@given(lengths=lists_of_lengths, frames=st.integers(1, 6), seed=st.integers(0, 9))
def test_windows_are_all_runs_of_seen_frames_within_one_episode(lengths, frames, seed):
    random = np.random.default_rng(seed)
    blanked = [tuple(np.flatnonzero(random.random(n + 1) < 0.2)) for n in lengths]
    episodes = [make_episode(n, i, b) for i, (n, b) in enumerate(zip(lengths, blanked, strict=True))]
    trajectories = Trajectories(episodes, SPACE, CPU)
    expected = [
        episode.mean[t : t + frames].tolist()
        for episode in episodes
        for t in range(len(episode.mean))
        if len(episode.mean[t : t + frames]) == frames and episode.visible[t : t + frames].all()
    ]
    rows = trajectories.windows(frames)
    assert rows.shape[1] == frames
    assert trajectories.codes.mean[rows].tolist() == expected


def test_an_episode_among_others_is_predicted_as_it_is_alone():
    episodes = make_episodes([1, 3, 7, 12])  # in the order in which they are batched
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(2, 3, 8, 2, reward=True, termination=True))
    (together,) = Trajectories(episodes, SPACE, CPU).whole()
    batched, _ = model(together.codes.mean[:, :-1], together.a_t)
    for i, episode in enumerate(episodes):
        (alone,) = Trajectories([episode], SPACE, CPU).whole()
        single, _ = model(alone.codes.mean[:, :-1], alone.a_t)
        n = len(episode.rewards)
        for ours, theirs in (
            (batched.z_tp1.mean, single.z_tp1.mean),
            (batched.reward_tp1, single.reward_tp1),
            (batched.termination, single.termination),
        ):
            np.testing.assert_allclose(ours[i, :n].detach(), theirs[0].detach(), atol=1e-6)


def test_boxed_actions_come_scaled_to_one():
    random = np.random.default_rng(0)
    space = Box(np.array([0, -2], np.float32), np.array([10, 2], np.float32))
    actions = np.array([[0, 2], [5, 0], [10, -1]], np.float32)
    codes = random.standard_normal((4, 2)).astype(np.float32)
    episode = LatentEpisode(codes, codes, actions, np.zeros(3, np.float32), np.ones(4, bool), False, True)
    (sequences,) = Trajectories([episode], space, CPU).whole()
    np.testing.assert_allclose(sequences.a_t[0], [[-1, 1], [0, 0], [1, -0.5]])


def test_reward_moments_are_those_of_all_rewards():
    episodes = make_episodes([7, 1, 12, 3])
    rewards = np.concatenate([episode.rewards for episode in episodes])
    moments = Trajectories(episodes, SPACE, CPU).reward_moments()
    np.testing.assert_allclose(moments, [rewards.mean(), rewards.std()], rtol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [2, 3]])
def test_rewards_that_never_differ_have_a_scale_of_one(lengths):
    episodes = make_episodes(lengths)
    for episode in episodes:
        episode.rewards[:] = -3
    assert Trajectories(episodes, SPACE, CPU).reward_moments().tolist() == [-3, 1]


def test_draws_are_of_the_posteriors_and_repeat_with_their_seed():
    logvar = torch.tensor([-40.0, 0.0, 2.0]).expand(50_000, 3)
    codes = DiagonalGaussian(torch.tensor([1.0, -2.0, 5.0]).expand(50_000, 3), logvar)
    drawn, again, other = (draw(codes, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    np.testing.assert_allclose(drawn.mean(0), [1, -2, 5], atol=0.06)
    np.testing.assert_allclose(drawn.std(0), np.exp([-20, 0, 1]), rtol=0.02, atol=1e-6)
