"""TakeCover as World Models plays it, against the running game."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agents.takecover import TICS, TakeCover
from worldvae.environments import make_vector_env

pytest.importorskip("vizdoom")

LEFT, STILL, RIGHT = (np.array([steer], np.float32) for steer in (-0.34, 0.33, 0.34))


@pytest.fixture
def env() -> Iterator[TakeCover]:
    env = TakeCover()
    yield env
    env.close()


def position(env: TakeCover) -> float:
    import vizdoom

    return env.game.get_game_variable(vizdoom.GameVariable.POSITION_Y)


def test_the_running_game_has_the_published_settings(env):
    env.reset(seed=0)
    game = env.game
    assert game.get_episode_timeout() == TICS == 2100
    assert (game.get_screen_width(), game.get_screen_height()) == (640, 480)
    assert game.get_living_reward() == 1
    assert [str(button).split(".")[-1] for button in game.get_available_buttons()] == ["MOVE_LEFT", "MOVE_RIGHT"]
    before = game.get_episode_time()
    env.step(STILL)
    assert game.get_episode_time() - before == 1, "one tic an action"


@pytest.mark.parametrize("milder", ["TakeCoverSkill4-v0", "PackagedTakeCover-v0"])
def test_at_skill_5_one_dies_sooner(env, milder):
    """Nightmare's fireballs are twice as fast: who stands still is hit in under two seconds more often than not."""

    def stands(env: gymnasium.Env) -> float:
        lengths = []
        for seed in range(8):
            env.reset(seed=seed)
            lengths.append(next(t for t in range(1, 3000) if any(env.step(STILL)[2:4])))
        return float(np.mean(lengths))

    other = gymnasium.make(f"agents.takecover:{milder}")
    assert 2 * stands(env) < stands(other)
    other.close()


def test_one_number_steers_three_ways(env):
    moved = []
    for steer in (LEFT, STILL, RIGHT):
        env.reset(seed=1)
        before = position(env)
        for _ in range(30):  # of which the first dozen pass before the player stirs
            env.step(steer)
        moved.append(position(env) - before)
    assert moved[1] == 0
    assert moved[0] * moved[2] < 0
    assert min(abs(moved[0]), abs(moved[2])) > 50


def test_the_packaged_game_is_steered_as_ours(env):
    packaged = gymnasium.make("agents.takecover:PackagedTakeCover-v0")
    for steer in (LEFT, STILL, RIGHT):
        moved = []
        for game in (env, packaged):
            game.reset(seed=1)
            before = position(game.unwrapped)
            for _ in range(30):
                game.step(steer)
            moved.append(np.sign(position(game.unwrapped) - before))
        assert moved[0] == moved[1]
    assert packaged.reset(seed=1)[0].shape == packaged.observation_space.shape == (200, 320, 3)
    packaged.close()


def test_the_time_limit_truncates_and_does_not_terminate(env):
    env.game.set_episode_timeout(20)
    env.reset(seed=0)
    ends = [env.step(STILL)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]


def test_gymnasium_is_content_with_it():
    env = gymnasium.make("agents.takecover:TakeCover-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_it_is_the_same_game_whether_it_draws_every_tic_or_those_that_are_seen(env):
    repeated = make_vector_env("agents.takecover:TakeCover-v0", 1, backend="sync", action_repeat=4)
    np.testing.assert_array_equal(repeated.reset(seed=[7])[0][0], env.reset(seed=7)[0])
    actions, over = np.random.default_rng(0), False
    while not over:
        action, total = actions.uniform(-1, 1, 1).astype(np.float32), 0.0
        for _ in range(4):
            if not over:
                frame, reward, over, _, _ = env.step(action)
                total += reward
        observations, rewards, terminated, _, info = repeated.step(action[None])
        np.testing.assert_array_equal(observations[0], frame)
        assert (rewards[0], terminated[0], info["env_steps"][0]) == (total, over, total)
    repeated.close()
