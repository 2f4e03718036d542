"""One contract whoever steps: uint8 pixels, resets when told, env steps counted."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pixel_env import SIZE, DotEnv, RenderOnlyEnv
from worldvae.environments import CutWithoutReward, UnknownEnvironment, hidden_repeat, is_image, make_vector_env
from worldvae.frames import FrameSpec, to_frames

box2d = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
"""Importing Box2D warns, and turned into an error inside its C code that warning ends the process."""


class SkippingDot(DotEnv):
    """Hides an action repeat, as ALE does."""

    def __init__(self, frameskip: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.frameskip = frameskip


class Blind(gymnasium.Env):
    """A vector, and nothing to render."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class NeedsAPackage(Blind):
    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("run `pip install thepackage`")


gymnasium.register("tests/SkippingDot-v0", entry_point=SkippingDot, kwargs={"frameskip": 4})
gymnasium.register("tests/Blind-v0", entry_point=Blind)
gymnasium.register("tests/NeedsAPackage-v0", entry_point=NeedsAPackage)


def sync(env_id: str = "tests/Dot-v0", num_envs: int = 2, **kwargs: Any) -> VectorEnv:
    return make_vector_env(env_id, num_envs, backend="sync", **kwargs)


def still(env: VectorEnv) -> Any:
    """[N, A] actions in the middle of the range."""
    space = env.single_action_space
    assert isinstance(space, Box)
    return np.stack([(space.low + space.high) / 2] * env.num_envs)


@pytest.mark.parametrize("kwargs", [{}, {"dictionary": True}, {"ends": True, "blank_last": True, "discrete": True}])
def test_our_own_environment_is_one_by_gymnasiums_book(kwargs: dict[str, Any]) -> None:
    check_env(gymnasium.make("tests/Dot-v0", **kwargs).unwrapped)


def test_our_own_rendered_environment_is_one_by_gymnasiums_book() -> None:
    check_env(gymnasium.make("tests/RenderOnly-v0").unwrapped)


@pytest.mark.parametrize("backend", ["sync", "async", "auto"])
def test_every_gymnasium_backend_plays_the_same_episodes(backend: Any) -> None:
    env = make_vector_env("tests/Dot-v0", 2, backend=backend, env_kwargs={"length": 3})
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert env.single_observation_space == Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    alone = [DotEnv(length=3) for _ in range(2)]
    first, _ = env.reset(seed=[4, 7])
    np.testing.assert_array_equal(first, np.stack([a.reset(seed=s)[0] for a, s in zip(alone, (4, 7), strict=True)]))
    for _ in range(3):
        action = np.array([[0.5], [-0.5]], np.float32)
        observations, rewards, terminated, truncated, info = env.step(action)
        steps = [a.step(u) for a, u in zip(alone, action, strict=True)]
        np.testing.assert_array_equal(observations, np.stack([s[0] for s in steps]))
        assert rewards.tolist() == [s[1] for s in steps]
        assert terminated.tolist() == [s[2] for s in steps]
        assert truncated.tolist() == [s[3] for s in steps]
        assert info["env_steps"].tolist() == [1, 1]
    env.close()


def test_only_masked_environments_restart() -> None:
    env = sync(num_envs=3, env_kwargs={"length": 2})
    env.reset(seed=[0, 1, 2])
    before = env.step(still(env))[0]
    after, _ = env.reset(seed=[9, 9, 9], options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1], DotEnv().reset(seed=9)[0])
    _, _, _, truncated, _ = env.step(still(env))
    assert truncated.tolist() == [True, False, True]


@settings(max_examples=30)
@given(repeat=st.integers(1, 9), length=st.integers(1, 9), ends=st.booleans(), seed=st.integers(0, 99))
def test_a_repeated_action_sums_its_rewards_and_stops_at_the_end(
    repeat: int, length: int, ends: bool, seed: int
) -> None:
    env = sync(num_envs=1, action_repeat=repeat, env_kwargs={"length": length, "ends": ends})
    env.reset(seed=[seed])
    alone = DotEnv(length=length, ends=ends)
    alone.reset(seed=seed)
    action = np.array([[0.3]], np.float32)
    over, played = False, 0
    while not over:
        observations, rewards, terminated, truncated, info = env.step(action)
        expected = min(repeat, length - played)
        steps = [alone.step(action[0]) for _ in range(expected)]
        played += expected
        over = bool(terminated[0] or truncated[0])
        np.testing.assert_array_equal(observations[0], steps[-1][0])
        assert rewards[0] == sum(s[1] for s in steps)
        assert info["env_steps"].tolist() == [expected]
        assert (terminated[0], truncated[0]) == steps[-1][2:4]
    assert played == length


def test_a_repeat_that_the_emulator_hides_costs_its_steps_too() -> None:
    for given_kwargs, hidden in (({}, 4), ({"frameskip": 3}, 3), ({"frameskip": 1}, 1)):
        env = sync("tests/SkippingDot-v0", action_repeat=2, env_kwargs=given_kwargs)
        assert hidden_repeat(env) == hidden
        env.reset(seed=[0, 1])
        assert env.step(still(env))[4]["env_steps"].tolist() == [2 * hidden] * 2


def test_a_step_limit_truncates_in_place_of_the_environments_own() -> None:
    env = sync(max_episode_steps=5, action_repeat=2)
    env.reset(seed=[0, 1])
    ends = [env.step(still(env))[3].all() for _ in range(3)]
    assert ends == [False, False, True]


def test_an_image_is_taken_out_of_a_dictionary_by_its_key() -> None:
    env = sync(key="screen", env_kwargs={"dictionary": True})
    observations, _ = env.reset(seed=[3, 4])
    np.testing.assert_array_equal(observations[1], DotEnv().reset(seed=4)[0])
    np.testing.assert_array_equal(env.step(still(env))[0].shape, (2, SIZE, SIZE, 3))


@pytest.mark.parametrize("crop", [(0, 0, 0, 0), (2, 0, 0, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_made_in_the_environments_processes_are_those_made_of_their_screens(crop, channels):
    spec = FrameSpec(8, 10, channels, crop, key="screen")
    plain, shrunk = (sync(key="screen", frame=f, env_kwargs={"dictionary": True}) for f in (None, spec))
    assert shrunk.single_observation_space.shape == ((SIZE, SIZE, 3) if any(crop) else spec.shape)
    screens, observations = (env.reset(seed=[3, 4])[0] for env in (plain, shrunk))
    np.testing.assert_array_equal(to_frames(observations, spec), to_frames(screens, spec))
    screens, observations = (env.step(still(plain))[0] for env in (plain, shrunk))
    np.testing.assert_array_equal(to_frames(observations, spec), to_frames(screens, spec))


def test_an_environment_that_only_renders_gives_its_rendered_pixels() -> None:
    env = sync("tests/RenderOnly-v0")
    assert env.single_observation_space.shape == (SIZE, SIZE, 3)
    alone = DotEnv()
    observations, _ = env.reset(seed=[3, 3])
    np.testing.assert_array_equal(observations[1], alone.reset(seed=3)[0])
    action = np.full((2, 1), -0.7, np.float32)
    np.testing.assert_array_equal(env.step(action)[0][0], alone.step(action[0])[0])


def test_of_a_repeated_action_only_the_last_step_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, render = [], RenderOnlyEnv.render
    monkeypatch.setattr(RenderOnlyEnv, "render", lambda env: drawn.append(env.t) or render(env))
    env = sync("tests/RenderOnly-v0", num_envs=1, action_repeat=4)
    alone = DotEnv()
    env.reset(seed=[3])
    alone.reset(seed=3)
    drawn.clear()
    for action in ([0.7], [-0.2], [0.4]):
        observations, rewards, _, _, info = env.step(np.array([action], np.float32))
        steps = [alone.step(np.array(action, np.float32)) for _ in range(4)]
        np.testing.assert_array_equal(observations[0], steps[-1][0])
        assert rewards[0] == sum(step[1] for step in steps)
        assert info["env_steps"].tolist() == [4]
    assert drawn == [4, 8, 12]


def test_a_dictionary_without_a_key_is_rendered() -> None:
    env = sync(env_kwargs={"dictionary": True})
    np.testing.assert_array_equal(env.reset(seed=[3, 4])[0][1], DotEnv().reset(seed=4)[0])


@pytest.mark.parametrize(
    ("env_id", "key", "kwargs", "message"),
    [
        ("tests/Nothing-v0", None, {}, "cannot make 'tests/Nothing-v0'"),
        ("nonsense", None, {}, "cannot make 'nonsense'"),
        ("no_such_module:Env-v0", None, {}, "cannot make"),
        ("tests/NeedsAPackage-v0", None, {}, "needs a package that is not installed.*thepackage"),
        ("tests/Blind-v0", None, {}, "tests/Blind-v0"),
        ("tests/Dot-v0", "scren", {"dictionary": True}, "no entry 'scren'.*screen"),
        ("tests/Dot-v0", "screen", {}, "no entry 'screen'"),
        ("tests/Dot-v0", "speed", {"dictionary": True}, "no uint8 images"),
    ],
)
def test_an_environment_that_cannot_be_made_says_why_in_a_sentence(
    env_id: str, key: str | None, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnknownEnvironment, match=message) as caught:
        sync(env_id, key=key, env_kwargs=kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [{"num_envs": 0}, {"action_repeat": 0}])
def test_nothing_cannot_be_stepped(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        sync(**numbers)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), True),
        (Box(0, 255, (8, 8, 1), np.uint8), True),
        (Box(0, 255, (8, 8), np.uint8), True),
        (Box(0, 255, (8, 8, 4), np.uint8), False),
        (Box(0, 255, (8,), np.uint8), False),
        (Box(0, 1, (8, 8, 3), np.float32), False),
        (gymnasium.spaces.Discrete(3), False),
    ],
)
def test_an_image_is_uint8_with_one_or_three_channels(space: gymnasium.Space, expected: bool) -> None:
    assert is_image(space) == expected


class Paying(DotEnv):
    """Pays the action itself."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action[0]), terminated, truncated, info


gymnasium.register("tests/Paying-v0", entry_point=Paying)


def cuts(patience: int, actions: list[float], **kwargs: Any) -> list[tuple[bool, bool]]:
    """(terminated, truncated) at each step of one paying environment."""
    env = CutWithoutReward(sync("tests/Paying-v0", 1, **kwargs), patience)
    env.reset(seed=[0])
    ends = []
    for action in actions:
        _, _, terminated, truncated, _ = env.step(np.array([[action]], np.float32))
        ends.append((bool(terminated[0]), bool(truncated[0])))
    return ends


ON, CUT, END = (False, False), (False, True), (True, False)


def test_an_episode_is_cut_after_so_many_env_steps_without_reward() -> None:
    assert cuts(3, [0, 0, 0]) == [ON, ON, CUT]
    assert cuts(3, [0, 0, 1, 0, 0, 0]) == [ON, ON, ON, ON, ON, CUT]
    assert cuts(3, [0, -1, -1]) == [ON, ON, CUT]
    assert cuts(6, [0, 0, 0], action_repeat=2) == [ON, ON, CUT]


def test_an_episode_that_terminates_is_not_cut() -> None:
    assert cuts(3, [0, 0, 0], env_kwargs={"length": 3, "ends": True}) == [ON, ON, END]


def test_patience_is_counted_anew_for_the_environments_that_restart() -> None:
    env = CutWithoutReward(sync("tests/Paying-v0", 2), 3)
    env.reset(seed=[0, 1])
    for _ in range(2):
        env.step(np.zeros((2, 1), np.float32))
    env.reset(seed=[0, 1], options={"reset_mask": np.array([True, False])})
    assert env.step(np.zeros((2, 1), np.float32))[3].tolist() == [False, True]
    env.reset(seed=[0, 1])
    assert env.step(np.zeros((2, 1), np.float32))[3].tolist() == [False, False]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_only_environments_that_reset_when_told_can_be_cut(mode: AutoresetMode) -> None:
    with pytest.raises(ValueError, match="DISABLED"):
        CutWithoutReward(SyncVectorEnv([DotEnv], autoreset_mode=mode), 3)


# The real thing: both backends of CarRacing-v3 keep the contract.


def car_racing(backend: Any, **kwargs: Any) -> VectorEnv:
    if backend == "envpool":
        pytest.importorskip("envpool")
    else:
        pytest.importorskip("Box2D")
    return make_vector_env("CarRacing-v3", 2, backend=backend, **kwargs)


@box2d
@pytest.mark.parametrize("backend", ["sync", "envpool"])
def test_car_racing_gives_pixels_and_counts_repeated_steps_up_to_its_end(backend: Any) -> None:
    env = car_racing(backend, action_repeat=4, max_episode_steps=10)
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert env.single_observation_space == Box(0, 255, (96, 96, 3), np.uint8)
    assert env.single_action_space.shape == (3,)
    observations, _ = env.reset(seed=[0, 1])
    assert env.observation_space.contains(observations)
    assert observations[0].std() > 1
    steps, ends = [], []
    for _ in range(3):
        observations, rewards, terminated, truncated, info = env.step(still(env))
        assert env.observation_space.contains(observations)
        assert np.isfinite(rewards).all()
        assert not terminated.any()
        steps.append(info["env_steps"].tolist())
        ends.append(truncated.tolist())
    assert steps == [[4, 4], [4, 4], [2, 2]]
    assert ends == [[False, False], [False, False], [True, True]]
    env.close()


@box2d
@pytest.mark.parametrize("env_id", ["CarRacing-v3", "agents.shifted:CarRacingColours-v0"])
def test_car_racing_is_the_same_whether_it_draws_every_step_or_those_that_are_seen(env_id: str) -> None:
    pytest.importorskip("Box2D")
    env = make_vector_env(env_id, 1, backend="sync", action_repeat=4, max_episode_steps=50)
    plain = gymnasium.make(env_id, max_episode_steps=50)
    actions = np.random.default_rng(0).uniform([-1, 0, 0], [1, 1, 0.2], (13, 3)).astype(np.float32)
    np.testing.assert_array_equal(env.reset(seed=[7])[0][0], plain.reset(seed=7)[0])
    for action in actions:  # the last one is cut after two of its four steps
        total, cut = 0.0, False
        for _ in range(4):
            if not cut:
                frame, reward, _, cut, _ = plain.step(action)
                total += float(reward)
        observations, rewards, _, truncated, _ = env.step(action[None])
        np.testing.assert_array_equal(observations[0], frame)
        assert (rewards[0], truncated[0]) == (total, cut)
    assert cut
    env.close()
    plain.close()


@box2d
@pytest.mark.parametrize("backend", ["sync", "envpool"])
def test_car_racing_restarts_where_the_mask_says(backend: Any) -> None:
    env = car_racing(backend, max_episode_steps=4)
    env.reset(seed=[0, 1])
    for _ in range(2):
        before = env.step(still(env))[0]
    after, _ = env.reset(seed=[2, 3], options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.array_equal(after[1], before[1])
    ends = [env.step(still(env))[3].tolist() for _ in range(2)]
    assert ends == [[False, False], [True, False]]
    env.reset(seed=[4, 3], options={"reset_mask": np.array([True, False])})
    ends = [env.step(still(env))[3].tolist() for _ in range(2)]
    assert ends == [[False, False], [False, True]]
    env.close()


def test_envpool_sums_the_rewards_of_a_repeated_action() -> None:
    returns, frames = [], []
    for repeat in (1, 5):
        env = car_racing("envpool", action_repeat=repeat)
        env.reset()
        total = np.zeros(2)
        for _ in range(20 // repeat):
            observations, rewards, _, _, _ = env.step(np.array([[0, 1, 0]] * 2, np.float32))
            total += rewards
        returns.append(total)
        frames.append(observations)
        env.close()
    np.testing.assert_allclose(*returns, rtol=1e-5)
    np.testing.assert_array_equal(*frames)


def test_envpool_is_seeded_at_construction() -> None:
    def first(seed: int) -> np.ndarray:
        env = car_racing("envpool", seed=seed, action_repeat=30)
        env.reset()
        observations = env.step(np.array([[0, 1, 0]] * 2, np.float32))[0]
        env.close()
        return observations

    np.testing.assert_array_equal(first(0), first(0))
    assert not np.array_equal(first(0), first(1_000))


def test_where_envpool_has_no_images_the_rendered_ones_are_taken() -> None:
    """EnvPool knows Pendulum-v1 too, but gives three numbers there."""
    pytest.importorskip("envpool")
    pytest.importorskip("pygame")
    env = make_vector_env("Pendulum-v1", 1, backend="auto")
    assert is_image(env.single_observation_space)
    assert env.reset(seed=[0])[0].std() > 1
    env.close()


def test_an_id_that_envpool_does_not_know_names_the_other_backends() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(UnknownEnvironment, match="'async' or 'sync'"):
        make_vector_env("tests/Dot-v0", 1, backend="envpool")
