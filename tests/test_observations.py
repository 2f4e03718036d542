"""What a controller sees, against a plain list of what happened."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from agents.observations import (
    LatentStack,
    ObservationConfig,
    as_vector,
    from_vector,
    observation_size,
    observations_of,
)
from worldvae.latents import LatentEpisode

BOX = Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))


def test_the_stack_holds_the_last_latents_and_the_last_action_of_each_episode():
    random = np.random.default_rng(0)
    config = ObservationConfig(stack=3)
    stack = LatentStack(config, 2, 4, 1)
    history: list[list[np.ndarray]] = [[], []]
    last_action = np.zeros((2, 1), np.float32)
    for t in range(12):
        started = np.array([t in (0, 5), t in (0, 8)])
        stack.reset(started)
        for i in np.flatnonzero(started):
            history[i] = []
            last_action[i] = 0
        z = random.standard_normal((2, 4)).astype(np.float32)
        seen = stack.push(z)
        for i in range(2):
            history[i].append(z[i])
            past = ([history[i][0]] * 3 + history[i])[-3:]
            np.testing.assert_array_equal(seen[i], np.concatenate([*past, last_action[i]]))
        last_action = random.standard_normal((2, 1)).astype(np.float32)
        stack.acted(last_action)


def test_peeking_shows_the_next_observation_and_changes_nothing():
    stack = LatentStack(ObservationConfig(stack=2), 1, 3, 2)
    z, action, following = np.ones((1, 3), np.float32), np.full((1, 2), 0.5, np.float32), np.full((1, 3), 2, np.float32)
    stack.push(z)
    stack.acted(action)
    peeked = stack.peek(following)
    np.testing.assert_array_equal(peeked, [[1, 1, 1, 2, 2, 2, 0.5, 0.5]])
    np.testing.assert_array_equal(stack.push(following), peeked)


def test_a_recorded_episode_is_seen_as_it_was_played():
    random = np.random.default_rng(1)
    mean = random.standard_normal((5, 2)).astype(np.float32)
    actions = np.stack([BOX.sample() for _ in range(4)])
    episode = LatentEpisode(mean, mean, actions, np.zeros(4, np.float32), np.ones(5, bool), False, True)
    seen = observations_of(episode, ObservationConfig(stack=2), BOX)
    vectors = as_vector(actions, BOX)
    np.testing.assert_array_equal(seen[0], np.concatenate([mean[0], mean[0], np.zeros(3)]))
    for t in range(1, 5):
        np.testing.assert_array_equal(seen[t], np.concatenate([mean[t - 1], mean[t], vectors[t - 1]]))


def test_only_latents_are_seen_where_asked():
    config = ObservationConfig(stack=1, last_action=False)
    assert observation_size(config, 32, BOX) == 32
    assert LatentStack(config, 1, 32, 3).push(np.zeros((1, 32), np.float32)).shape == (1, 32)


@pytest.mark.parametrize("space", [BOX, Box(-2, 3, (2, 2), np.float32), Discrete(4), Discrete(3, start=-1)])
def test_actions_survive_the_way_to_vectors_and_back(space):
    space.seed(0)
    actions = np.stack([np.asarray(space.sample()) for _ in range(20)])
    vectors = as_vector(actions, space)
    assert vectors.dtype == np.float32
    assert vectors.min() >= -1 - 1e-6
    assert vectors.max() <= 1 + 1e-6
    back = from_vector(vectors, space)
    np.testing.assert_allclose(back, actions, atol=1e-6)
    assert all(space.contains(action) for action in back)


def test_other_action_spaces_are_refused_in_words():
    with pytest.raises(ValueError, match="Box and Discrete"):
        observation_size(ObservationConfig(), 32, MultiDiscrete([2, 2]))
