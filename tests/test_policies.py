"""Random actors: inside the action space, reproducible, and with the statistics they promise."""

from __future__ import annotations

import math
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worldvae.policies import CorrelatedConfig, CorrelatedPolicy, UniformPolicy, random_policy

SPACES = [
    Box(-1, 1, (1,), np.float32),
    Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
    Box(-2, 5, (2, 3), np.float64),
    Box(0, 5, (2,), np.int64),
    Discrete(5),
    Discrete(3, start=-1),
    MultiDiscrete([2, 3, 4]),
    MultiDiscrete([2, 3], start=[5, -1]),
]
KINDS = ["uniform", "correlated"]


def acted(policy: UniformPolicy | CorrelatedPolicy, steps: int) -> NDArray:
    """[steps, N, ..] actions; these policies look at nothing."""
    return np.stack([policy.act(np.zeros(0)) for _ in range(steps)])


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_action_is_one_of_the_action_space(kind: str, space: gymnasium.Space) -> None:
    actions = acted(random_policy(kind, space, 4, seed=0), 50)  # type: ignore[arg-type]
    assert actions.shape[:2] == (50, 4)
    for action in actions.reshape(-1, *space.shape):
        assert space.contains(action if space.shape else action[()])


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), space=st.sampled_from(SPACES))
def test_the_same_seed_gives_the_same_actions(seed: int, kind: str, space: gymnasium.Space) -> None:
    one, two = (acted(random_policy(kind, space, 2, seed), 5) for _ in range(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_actions_and_environments_differ(kind: str) -> None:
    one, two = (acted(random_policy(kind, SPACES[0], 2, seed), 20) for seed in (0, 1))  # type: ignore[arg-type]
    assert not np.array_equal(one, two)
    assert not np.array_equal(one[:, 0], one[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbounded_action_space_is_refused_in_words(kind: str) -> None:
    with pytest.raises(ValueError, match="bounded"):
        random_policy(kind, Box(-np.inf, np.inf, (2,)), 1, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_an_action_space_of_another_kind_is_refused_in_words(kind: str) -> None:
    with pytest.raises(ValueError, match="Box, Discrete or MultiDiscrete"):
        random_policy(kind, gymnasium.spaces.MultiBinary(3), 1, seed=0)  # type: ignore[arg-type]


def test_uniform_actions_are_uniform() -> None:
    low, high = np.array([-1, 0], np.float32), np.array([1, 4], np.float32)
    actions = acted(UniformPolicy(Box(low, high), 100, seed=0), 400).reshape(-1, 2)
    for a, lo, hi in zip(actions.T, low, high, strict=True):
        ranks = (np.sort(a) - lo) / (hi - lo)
        distance = np.abs(ranks - (np.arange(len(a)) + 0.5) / len(a)).max()
        assert distance < 1.95 / math.sqrt(len(a))  # Kolmogorov-Smirnov, p = 0.001
    choices = acted(UniformPolicy(Discrete(4, start=2), 100, seed=0), 400)
    counts = np.bincount(choices.ravel(), minlength=6)
    assert counts[:2].sum() == 0
    assert np.abs(counts[2:] - 10_000).max() < 5 * math.sqrt(40_000 * 0.25 * 0.75)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_held_actions_change_when_their_time_is_over_or_an_episode_begins(space: gymnasium.Space) -> None:
    policy = UniformPolicy(space, 40, seed=0, held=5)
    actions = [*acted(policy, 7)]
    policy.reset(np.arange(40) < 20)
    actions += [*acted(policy, 5)]
    changed = np.array([(one != two).reshape(40, -1).any(1) for one, two in pairwise(actions)])
    assert np.flatnonzero(changed[:, :20].any(1)).tolist() == [4, 6]
    assert np.flatnonzero(changed[:, 20:].any(1)).tolist() == [4, 9]
    with pytest.raises(ValueError, match="held for >= 1"):
        UniformPolicy(space, 40, seed=0, held=0)


@pytest.mark.parametrize("correlation", [1.0, 4.0, 20.0])
def test_correlated_actions_are_the_stationary_process_of_their_mean_sd_and_time_constant(correlation: float) -> None:
    # Ornstein-Uhlenbeck: mean m, sd s, autocorrelation exp(-lag / correlation), from the first step on.
    # The bounds lie 5 sd away, so clipping does not matter.
    n, steps = 4000, 30
    mean, sd = np.array([0.3, -0.2]), np.array([0.1, 0.15])
    config = CorrelatedConfig(correlation, tuple(mean), tuple(sd))
    actions = acted(CorrelatedPolicy(Box(-1, 1, (2,), np.float64), n, 0, config), steps)
    for a_t in (actions[0], actions[-1]):
        assert np.abs(a_t.mean(0) - mean).max() < 4 * sd.max() / math.sqrt(n)
        assert np.abs(a_t.std(0) / sd - 1).max() < 4 / math.sqrt(2 * n)
    for lag in (1, 3, 10, 29):
        expected = math.exp(-lag / correlation)
        for d in range(2):
            found = np.corrcoef(actions[0, :, d], actions[lag, :, d])[0, 1]
            assert abs(found - expected) < 4 / math.sqrt(n)


def test_actions_wander_over_the_middle_and_half_of_the_range_by_default() -> None:
    space = Box(np.array([2.0], np.float32), np.array([6.0], np.float32))
    actions = acted(CorrelatedPolicy(space, 20_000, 0), 1)[0, :, 0]
    inside = (actions > 2) & (actions < 6)
    # mean 4, sd 2: a Gaussian lies within one sd of its mean with probability 0.6827
    assert abs(inside.mean() - 0.6827) < 4 * math.sqrt(0.68 * 0.32 / 20_000)
    assert abs(np.median(actions) - 4) < 0.1


@pytest.mark.parametrize("space", [Discrete(4), MultiDiscrete([4])])
def test_a_discrete_action_lasts_as_long_as_its_time_constant_says(space: gymnasium.Space) -> None:
    correlation, n, steps = 5.0, 3000, 12
    actions = acted(CorrelatedPolicy(space, n, 0, CorrelatedConfig(correlation)), steps).reshape(steps, n)
    for lag in (1, 4, 10):
        # kept with (1 - 1/c)^lag, else drawn anew from 4 of which one is the same
        kept = (1 - 1 / correlation) ** lag
        same = kept + (1 - kept) / 4
        found = (actions[0] == actions[lag]).mean()
        assert abs(found - same) < 4 * math.sqrt(same * (1 - same) / n)


@pytest.mark.parametrize("space", [Box(-1, 1, (1,), np.float64), Discrete(1000)])
def test_a_reset_forgets_the_past_of_the_masked_environments_alone(space: gymnasium.Space) -> None:
    n = 400
    policy = CorrelatedPolicy(space, n, 0, CorrelatedConfig(correlation=1e9))  # would never change
    before = policy.act(np.zeros(0)).reshape(n)
    mask = np.arange(n) < n // 2
    policy.reset(mask)
    after = policy.act(np.zeros(0)).reshape(n)
    np.testing.assert_allclose(after[~mask], before[~mask], atol=1e-3)
    assert np.isclose(after[mask], before[mask], atol=1e-3).mean() < 0.2  # both clipped at one end, at most


@pytest.mark.parametrize("correlation", [0.0, -1.0])
def test_a_time_constant_must_be_positive(correlation: float) -> None:
    with pytest.raises(ValueError, match="correlation must be > 0"):
        CorrelatedPolicy(SPACES[0], 1, 0, CorrelatedConfig(correlation))


def test_one_number_serves_all_dimensions_and_a_wrong_count_is_refused() -> None:
    space = Box(-1, 1, (2, 2), np.float64)
    policy = CorrelatedPolicy(space, 5, 0, CorrelatedConfig(mean=(0.5,), sd=(0.0,)))
    np.testing.assert_array_equal(policy.act(np.zeros(0)), np.full((5, 2, 2), 0.5))
    with pytest.raises(ValueError, match="one number per action dimension"):
        CorrelatedPolicy(space, 5, 0, CorrelatedConfig(mean=(0.5, 0.5)))
