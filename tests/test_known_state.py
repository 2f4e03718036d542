"""State that no frame shows is read by playing recorded episodes again, if they come out as recorded."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from scripts.known_state import car_racing, replayed
from tests.dots import record_dots
from worldvae import Episode, FrameSpec, RolloutStore, to_frames

SPEC = FrameSpec(crop=(0, 12, 0, 0))
REPEAT, STEPS = 4, 15


@pytest.fixture(scope="module")
def drive() -> tuple[Episode, np.ndarray]:
    """Full gas and a little to the right, and the car's speed at each frame, noted on the way."""
    env = gymnasium.make("CarRacing-v3")
    observation, _ = env.reset(seed=3)
    frames, speeds = [to_frames(observation, SPEC)], [0.0]
    action = np.array([0.1, 1.0, 0.0], np.float32)
    for _ in range(STEPS):
        for _ in range(REPEAT):
            observation, *_ = env.step(action)
        frames.append(to_frames(observation, SPEC))
        speeds.append(float(np.hypot(*env.unwrapped.car.hull.linearVelocity)))
    actions, rewards = np.repeat(action[None], STEPS, 0), np.zeros(STEPS, np.float32)
    env.close()
    return Episode(np.stack(frames), actions, rewards, np.ones(STEPS + 1, bool), False, True, seed=3), np.array(speeds)


def store_of(folder, *episodes: Episode) -> RolloutStore:
    space = gymnasium.spaces.Box(np.array([-1, 0, 0]), np.array([1, 1, 1]), dtype=np.float32)
    store = RolloutStore.create(
        folder, env_id="CarRacing-v3", frame_spec=SPEC, action_space=space, action_repeat=REPEAT
    )
    for episode in episodes:
        store.append(episode)
    return store


def test_an_episode_played_again_tells_its_speed_and_one_of_other_pictures_is_left_out(drive, tmp_path):
    episode, speeds = drive
    elsewhere = replace(episode, frames=episode.frames // 2)
    seen, state = replayed(store_of(tmp_path, elsewhere, episode), 100)
    assert (seen.episode == 1).all()
    np.testing.assert_array_equal(seen.t, np.arange(STEPS + 1))
    np.testing.assert_allclose(state["speed"], speeds, atol=1e-6)
    assert speeds[-1] > 20
    assert np.nanmax(state["off centre"]) > 3  # it turns right


def test_from_where_frames_come_out_differently_the_state_is_unknown(drive, tmp_path):
    episode, _ = drive
    frames = episode.frames.copy()
    frames[10] = 0
    _, state = replayed(store_of(tmp_path, replace(episode, frames=frames)), 100)
    assert np.isfinite(state["speed"][:10]).all()
    assert np.isnan(state["speed"][10:]).all()


def test_a_car_set_beside_the_track_is_so_far_right_of_its_middle():
    env = gymnasium.make("CarRacing-v3")
    env.reset(seed=3)
    game = env.unwrapped
    _, heading, x, y = game.track[0]
    game.car.hull.position = (x + 5 * np.cos(heading), y + 5 * np.sin(heading))
    game.car.hull.angle = heading + 0.3
    told = car_racing(env)
    env.close()
    assert told["off centre"] == pytest.approx(5, abs=0.2)
    assert told["angle to track"] == pytest.approx(0.3, abs=0.05)


def test_where_no_episode_comes_out_as_recorded_and_where_nobody_reads_the_state_it_says_so(drive, tmp_path):
    with pytest.raises(ValueError, match=r"no episode of .* comes out as recorded"):
        replayed(store_of(tmp_path / "other", replace(drive[0], frames=drive[0].frames // 2)), 100)
    with pytest.raises(ValueError, match="no reader of tests/Dot-v0's state"):
        replayed(record_dots(tmp_path / "dots", episodes=1), 100)
