"""Small objects are counted before and after the codec, by a detector that knows them in real frames."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from scripts import objects as command
from scripts.object_sources import SOURCES, collect
from tests.moving_dots import MovingDots
from worldvae.measures.objects import Detector, fit_detector, matches, score, survival

POINTS = st.integers(0, 5).flatmap(lambda n: arrays(np.float32, (n, 2), elements=st.floats(0, 9, width=16)))


def points(*xy: tuple[float, float]) -> np.ndarray:
    return np.array(xy, np.float32).reshape(-1, 2)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Frames of drifting dots, where they are, and a detector that has seen half of the frames."""
    env = MovingDots(length=24)
    shown = []
    for seed in range(80):
        shown.append(env.reset(seed=seed))
        shown += [env.step(0)[::4] for _ in range(24)]
    frames = np.stack([frame for frame, _ in shown])
    objects = [info["objects"] for _, info in shown]
    detector = fit_detector(frames[:1000], objects[:1000], steps=400)
    return frames[1000:], objects[1000:], detector


@given(found=POINTS, true=POINTS)
def test_each_point_is_matched_at_most_once_within_the_radius_and_nothing_near_is_left(found, true):
    pairs = matches(found, true, radius=2)
    assert len({i for i, *_ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
    distance = np.linalg.norm(found[:, None] - true[None], axis=-1)
    for i, j, error in pairs:
        assert error == pytest.approx(distance[i, j])
        assert error <= 2
    free = np.delete(np.delete(distance, [i for i, *_ in pairs], 0), [j for _, j, _ in pairs], 1)
    assert (free > 2).all()
    best = (
        (distance[linear_sum_assignment(np.where(distance <= 2, distance - 100, 0))] <= 2).sum() if distance.size else 0
    )
    assert best / 2 <= len(pairs) <= best


def test_scores_count_what_was_found_missed_and_made_up():
    true = [points((10, 10), (20, 20)), points((30, 30)), points()]
    found = [points((10, 11)), points((30, 30), (40, 40)), points((5, 5))]
    told = score(found, true)
    assert (told.recall, told.precision, told.position_error) == (pytest.approx(2 / 3), 0.5, 0.5)
    assert (told.objects, told.found) == (3, 4)


def test_the_detector_knows_dots_in_frames_it_has_not_seen(scene):
    frames, objects, detector = scene
    told = score(detector.find(frames), objects)
    assert told.recall > 0.97
    assert told.precision > 0.97
    assert told.position_error < 0.6


def test_a_perfect_codec_keeps_all(scene):
    frames, objects, detector = scene
    kept = survival(detector, frames, frames, objects)
    assert kept.recall == 1
    assert kept.precision > 0.97


def test_a_codec_that_paints_over_objects_keeps_none(scene):
    frames, objects, detector = scene
    bare = frames.copy()
    for frame, middles in zip(bare, objects, strict=True):
        for x, y in middles.astype(int):
            frame[y - 1 : y + 1, x - 1 : x + 1] = frame[y - 1 : y + 1, x - 3 : x - 1]
    kept = survival(detector, frames, bare, objects)
    assert kept.recall < 0.05
    assert kept.found < 0.05 * kept.objects


def test_objects_in_the_wrong_place_are_neither_kept_nor_right(scene):
    frames, objects, detector = scene
    moved = survival(detector, frames, np.roll(frames, 20, axis=2), objects)
    assert moved.recall < 0.1
    assert moved.precision < 0.1


def test_frames_without_objects_cannot_teach_a_detector():
    with pytest.raises(ValueError, match="no frame shows an object"):
        fit_detector(np.zeros((4, 64, 64, 3), np.uint8), [points()] * 4)


def test_an_untrained_detector_finds_nothing(scene):
    assert sum(map(len, Detector(3).find(scene[0][:50]))) == 0


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_the_rams_ball_is_where_the_screen_shows_it(game):
    source, colour = SOURCES[game], {"pong": (236, 236, 236), "breakout": (200, 72, 72)}[game]
    env = source.make()
    env.action_space.seed(0)
    env.reset(seed=0)
    checked = 0
    for _ in range(400):
        screen, _, terminated, _, info = env.step(env.action_space.sample())
        for x, y in source.locate(env, info):
            if 100 < y < 186:  # no bricks, paddles or borders of that colour
                shown = (screen[int(y) - 2 : int(y) + 2, int(x) - 1 : int(x) + 1] == colour).all(-1)
                checked += 1
                assert shown.mean() >= 0.5, (x, y)
        if terminated:
            env.reset()
    assert checked > 50


def test_the_player_sends_balls_back_that_random_play_misses(tmp_path: Path):
    on_the_left = {}
    for player in (SOURCES["pong"].player, None):
        source = replace(SOURCES["pong"], episodes=1, most_steps=400, player=player)
        _, objects = collect(source, tmp_path / str(player), seed=0)
        on_the_left[player] = sum(float(x) < 32 for points in objects[0] for x, _ in points)
    played, random = on_the_left.values()
    assert played > 1.5 * random


def test_take_covers_fireballs_are_told_where_they_burn():
    env = gymnasium.make("agents.takecover:TakeCover-v0", objects=True)
    seen = {}
    for _ in range(2):
        screen, info = env.reset(seed=3)
        assert screen.shape == (400, 640, 3)
        run = []
        terminated = False
        while not terminated:
            screen, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
            run.append((screen.copy(), info["objects"]))
            assert (reward, truncated) == (1, False)
        assert not screen.any(), "after the end there is nothing to see"
        seen[len(seen)] = run
    assert len(seen[0]) == len(seen[1])
    assert all((a == b).all() for (a, _), (b, _) in zip(seen[0], seen[1], strict=True))
    burning = [screen[int(y), int(x)] for screen, middles in seen[0] for x, y in middles]
    assert len(burning) > 20
    assert np.mean([pixel.min() > 200 for pixel in burning]) > 0.8, "white hot in their middles"
    env.close()


def test_a_sources_rollouts_come_with_the_objects_of_each_visible_frame(tmp_path: Path):
    source = replace(SOURCES["dots"], episodes=3, most_steps=30)
    store, objects = collect(source, tmp_path, seed=1)
    again, same = collect(source, tmp_path, seed=1)
    assert len(store) == len(again) == 3
    for e in range(3):
        frames = store.visible_frames(e)
        assert len(frames) == len(objects[e]) == 31
        for frame, here, there in zip(frames, objects[e], same[e], strict=True):
            np.testing.assert_array_equal(here, there)
            for x, y in here.astype(int):
                assert (frame[y - 1 : y + 1, x - 1 : x + 1] == (250, 240, 230)).all()


def test_the_command_judges_each_objective_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "dots", replace(SOURCES["dots"], episodes=10, most_steps=30))
    monkeypatch.setattr(command, "fit_detector", partial(fit_detector, steps=150))
    record = tmp_path / "objects.json"
    for _ in range(2):
        command.main(tmp_path / "runs", envs=("dots",), seeds=(0,), passes=2, latent_size=8, json_file=record)
    assert capsys.readouterr().out.count("detector on real frames") == 1
    published, moving = json.loads(record.read_text())["runs"]
    assert (published["objective"], moving["objective"]) == ("published", "calibrated, moving pixels")
    for row in (published, moving):
        assert (row["env"], row["object"], row["seed"], row["z"]) == ("MovingDots", "dot", 0, 8)
        assert row["steps"] == round(2 * row["frames"] / 32)
        assert 0 <= row["recall"] <= 1
        assert row["kl_nats"] > 0
    assert published["detector"] == moving["detector"]
    height, width, _ = cv2.imread(str(record.with_suffix(".png"))).shape
    assert width > 3 * height, "three rows of ten"
