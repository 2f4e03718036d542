"""Stepping environments: true transitions under every autoreset mode, and whole episodes from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.pixel_env import SIZE, DotEnv
from worldvae.environments import ActionRepeat, make_vector_env
from worldvae.failures import EnvironmentFailed
from worldvae.frames import FrameSpec, to_frames
from worldvae.policies import random_policy
from worldvae.record import interact, record

RAW = FrameSpec(SIZE, SIZE)
SELF_RESETTING = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def action_of(observation: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[.., H, W, 3] -> [.., 1]: some action that the picture alone determines."""
    return np.cos(observation[..., SIZE // 2, :, :].sum((-2, -1), keepdims=True)[..., 0].astype(np.float32) / 97)


class FromThePicture:
    """Acts by ``action_of`` and writes down which environments were said to start."""

    def __init__(self) -> None:
        self.resets: list[list[bool]] = []

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self.resets.append(mask.tolist())

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        return action_of(observations)


@dataclass
class Step:
    """One transition of one environment."""

    observation_t: NDArray[np.uint8]
    action_t: NDArray[np.float32]
    reward_tp1: float
    ended: tuple[bool, bool]
    observation_tp1: NDArray[np.uint8]
    started: bool
    env_steps: int


def assert_same(found: list[Step], expected: list[Step]) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        for name, value in vars(two).items():
            np.testing.assert_array_equal(getattr(one, name), value, name)


def played_alone(env: gymnasium.Env, seed: int, episodes: int) -> list[Step]:
    """The plain loop: one environment, seeded once, then resetting as it likes."""
    steps = []
    for k in range(episodes):
        observation_t, _ = env.reset(seed=seed if k == 0 else None)
        started, over = True, False
        while not over:
            action_t = action_of(observation_t)
            observation_tp1, reward, terminated, truncated, info = env.step(action_t)
            over = terminated or truncated
            env_steps = info.get("env_steps", 1)
            steps.append(
                Step(observation_t, action_t, reward, (terminated, truncated), observation_tp1, started, env_steps)
            )
            observation_t, started = observation_tp1, False
    return steps


def played_together(env: gymnasium.vector.VectorEnv, seeds: list[int]) -> tuple[dict[int, list[Step]], dict]:
    """The recorded transitions of ``interact`` by environment, and those by seed."""
    by_env: dict[int, list[Step]] = defaultdict(list)
    by_seed: dict[int, list[Step]] = defaultdict(list)
    for step in interact(env, FromThePicture(), seeds):
        for i in np.flatnonzero(step.recorded):
            one = Step(
                step.observations_t[i].copy(),
                step.actions_t[i].copy(),
                float(step.rewards_tp1[i]),
                (bool(step.terminated[i]), bool(step.truncated[i])),
                step.observations_tp1[i].copy(),
                bool(step.started[i]),
                int(step.env_steps[i]),
            )
            by_env[int(i)].append(one)
            by_seed[int(step.seeds[i])].append(one)
    return by_env, by_seed


def dot(length: int, ends: bool = False, repeat: int | None = None) -> Callable[[], gymnasium.Env]:
    """Makes an environment of that length, with or without ``ActionRepeat``."""
    if repeat is None:
        return lambda: DotEnv(length=length, ends=ends)
    return lambda: ActionRepeat(DotEnv(length=length, ends=ends), repeat)


@pytest.mark.parametrize("repeat", [None, 2])
@pytest.mark.parametrize("mode", SELF_RESETTING)
def test_environments_that_reset_themselves_give_the_true_transitions(mode: AutoresetMode, repeat: int | None) -> None:
    lengths, ends = (2, 5, 7), (True, False, True)
    makers = [dot(length, end, repeat) for length, end in zip(lengths, ends, strict=True)]
    by_env, _ = played_together(SyncVectorEnv(makers, autoreset_mode=mode), list(range(12)))
    assert sum(sum(step.started for step in steps) for steps in by_env.values()) == 12
    for i, make in enumerate(makers):
        episodes = sum(step.started for step in by_env[i])
        assert episodes >= 2
        assert_same(by_env[i], played_alone(make(), seed=i, episodes=episodes))


@pytest.mark.parametrize("repeat", [None, 2])
def test_environments_that_reset_when_told_give_the_true_transitions_of_each_seed(repeat: int | None) -> None:
    seeds = [5, 3, 8, 0, 11, 2, 7]
    makers = [dot(4, True, repeat), dot(4, True, repeat), dot(4, True, repeat)]
    _, by_seed = played_together(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED), seeds)
    assert sorted(by_seed) == sorted(seeds)
    for seed in seeds:
        assert_same(by_seed[seed], played_alone(makers[0](), seed, episodes=1))


@settings(max_examples=60)
@given(
    num_envs=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    seeds=st.lists(st.integers(0, 1000), max_size=8, unique=True),
    mode=st.sampled_from(list(AutoresetMode)),
)
def test_each_listed_seed_is_played_once_to_its_end(
    num_envs: int, lengths: list[int], seeds: list[int], mode: AutoresetMode
) -> None:
    env = SyncVectorEnv([dot(length) for length in lengths[:num_envs]], autoreset_mode=mode)
    _, by_seed = played_together(env, seeds)
    assert sorted(by_seed) == sorted(seeds)
    for steps in by_seed.values():
        assert [step.started for step in steps] == [True] + [False] * (len(steps) - 1)
        assert [any(step.ended) for step in steps] == [False] * (len(steps) - 1) + [True]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_policy_is_told_of_each_start_before_it_acts(mode: AutoresetMode) -> None:
    policy = FromThePicture()
    env = SyncVectorEnv([dot(2), dot(3)], autoreset_mode=mode)
    started = [step.started.tolist() for step in interact(env, policy, range(5))]
    assert policy.resets == started
    assert started[0] == [True, True]


def test_without_seeds_it_goes_on_with_0_1_2() -> None:
    env = SyncVectorEnv([dot(2)], autoreset_mode=AutoresetMode.DISABLED)
    stream = interact(env, FromThePicture())
    assert [int(next(stream).seeds[0]) for _ in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_environment_without_an_autoreset_mode_is_refused() -> None:
    env = SyncVectorEnv([dot(2)])
    env.metadata = {}
    with pytest.raises(RuntimeError, match="autoreset"):
        next(interact(env, FromThePicture(), [0]))


def test_an_environment_that_overwrites_what_it_gave_is_refused() -> None:
    env = SyncVectorEnv([dot(2)], copy=False, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(RuntimeError, match="copy=True"):
        next(interact(env, FromThePicture(), [0]))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_dictionary_observations_are_refused_in_words(mode: AutoresetMode) -> None:
    class Still(FromThePicture):
        def act(self, observations: Any) -> NDArray[Any]:
            return np.zeros((1, 1), np.float32)

    env = SyncVectorEnv([lambda: DotEnv(length=1, dictionary=True)], autoreset_mode=mode)
    with pytest.raises(RuntimeError, match="dictionar"):
        list(interact(env, Still(), [0, 1]))


@pytest.mark.parametrize("env_id", ["tests/Dot-v0", "tests/DiscreteDot-v0"])
@pytest.mark.parametrize("action_repeat", [1, 3])
def test_a_recorded_episode_is_what_the_plain_loop_sees(env_id: str, action_repeat: int) -> None:
    seeds = [9, 4, 1, 6]
    spec = FrameSpec(12, 16, crop=(2, 0, 0, 4))
    env = make_vector_env(env_id, 3, backend="sync", action_repeat=action_repeat, env_kwargs={"length": 8})
    policy = random_policy("correlated", env.single_action_space, 3, seed=0)
    episodes = list(record(env, policy, spec, seeds, "correlated"))
    assert sorted(e.seed for e in episodes) == sorted(seeds)
    alone = gymnasium.make(env_id, length=8)
    for e in episodes:
        assert e.policy == "correlated"
        pixels = [alone.reset(seed=e.seed)[0]]
        rewards, count, over = [], 0, False
        for action in e.actions:
            assert alone.action_space.contains(action if action.shape else action[()])
            total = 0.0
            for _ in range(action_repeat):
                observation, reward, terminated, truncated, _ = alone.step(action)
                total, count, over = total + reward, count + 1, terminated or truncated
                if over:
                    break
            pixels.append(observation)
            rewards.append(total)
        assert over
        assert (e.terminated, e.truncated) == (terminated, truncated)
        assert e.env_steps == count == 8
        np.testing.assert_array_equal(e.frames, np.stack([to_frames(p, spec) for p in pixels]))
        np.testing.assert_array_equal(e.rewards, np.array(rewards, np.float32))
        assert e.visible.all()


def test_the_same_seeds_give_the_same_episodes() -> None:
    def collect() -> list[bytes]:
        env = make_vector_env("tests/Dot-v0", 2, backend="sync", env_kwargs={"length": 6})
        policy = random_policy("uniform", env.single_action_space, 2, seed=3)
        return [e.frames.tobytes() + e.actions.tobytes() for e in record(env, policy, RAW, range(5))]

    assert collect() == collect()


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_frame_that_the_environment_blanked_is_marked_invisible(mode: AutoresetMode, ends: bool) -> None:
    env = SyncVectorEnv([lambda: DotEnv(length=4, ends=ends, blank_last=True)] * 2, autoreset_mode=mode)
    episodes = list(record(env, FromThePicture(), FrameSpec(8, 8), range(4)))
    assert len(episodes) == 4
    for e in episodes:
        assert e.visible.tolist() == [True, True, True, True, False]
        assert not e.frames[-1].any()
        assert (e.terminated, e.truncated) == (ends, not ends)


def test_an_environment_that_is_always_dark_is_seen_as_it_is() -> None:
    class Dark(DotEnv):
        def _observation(self, blank: bool = False) -> Any:
            return np.zeros((SIZE, SIZE, 3), np.uint8)

    env = SyncVectorEnv([lambda: Dark(length=3)], autoreset_mode=AutoresetMode.DISABLED)
    (episode,) = record(env, FromThePicture(), RAW, [0])
    assert episode.visible.all()


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_is_told_with_its_seed(reward: float) -> None:
    class Broken(DotEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, info

    env = SyncVectorEnv([lambda: Broken(length=2)], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(EnvironmentFailed, match="step 1 of the episode of seed 17: a reward is not a finite number"):
        list(record(env, FromThePicture(), RAW, [17]))


def test_episodes_are_handed_over_as_soon_as_they_end() -> None:
    env = SyncVectorEnv([dot(50), dot(2)], autoreset_mode=AutoresetMode.DISABLED)
    seeds = [len(e) for e in record(env, FromThePicture(), RAW, range(6))]
    assert seeds == [2, 2, 2, 2, 2, 50]
