"""Sprites are what their factors say, whichever others are drawn with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scripts import sprites
from scripts.sprites import COUNT, FACTORS, LARGEST, SIDE, SIZES, STRANGER, factors_of, render

AREAS = (2.0, math.pi / 2, 0.9**2 + math.pi * 0.45**2)
"""Of square, ellipse and heart (a square and two half discs), in units of their size squared."""


def centroid(frame: np.ndarray) -> np.ndarray:
    """(x, y) of a frame [64, 64, 1] in pixels."""
    light = frame[..., 0] / frame.sum()
    pixel = np.arange(SIDE) + 0.5
    return np.array([light.sum(0) @ pixel, light.sum(1) @ pixel])


def test_every_index_is_one_combination_of_factors():
    assert math.prod((3, 6, 40, 32, 32)) == COUNT
    indices = np.array([0, 1, 31, 32, 40 * 1024, 6 * 40 * 1024, COUNT - 1])
    factors = factors_of(indices)
    assert factors[-1].tolist() == [size - 1 for size in SIZES]
    assert np.array_equal(np.ravel_multi_index(tuple(factors.T), SIZES), indices)
    assert factors.shape[1] == len(FACTORS)


def test_a_frame_is_the_same_whichever_others_are_drawn():
    factors = factors_of(np.random.default_rng(0).integers(COUNT, size=2 * sprites.CHUNK + 3))
    frames = render(factors)
    assert frames.shape == (len(factors), 64, 64, 1)
    assert frames.dtype == np.uint8
    for i in (0, sprites.CHUNK, len(factors) - 1):
        assert np.array_equal(render(factors[i : i + 1])[0], frames[i])


@pytest.mark.parametrize("shape", range(3))
@pytest.mark.parametrize("scale", [0, 5])
def test_areas_are_those_of_the_shapes(shape, scale):
    frames = render(np.array([[shape, scale, angle, 9, 20] for angle in range(40)]))
    size = LARGEST * (0.5 + 0.1 * scale)
    assert frames.sum((1, 2, 3)) / 255 == pytest.approx(AREAS[shape] * size**2, rel=0.03)


@pytest.mark.parametrize(("shape", "half_width", "half_height"), [(0, math.sqrt(0.5), math.sqrt(0.5)), (1, 1.0, 0.5)])
def test_pixels_show_how_much_of_them_the_shape_covers(shape, half_width, half_height):
    angle, x, y, fine = 7, 3, 30, 16
    size, turn = LARGEST, 2 * math.pi * angle / 40
    at = (np.arange(SIDE * fine) + 0.5) / fine
    right, up = at[None, :] - (16 + 32 * x / 31), (16 + 32 * y / 31) - at[:, None]
    u = (math.cos(turn) * right + math.sin(turn) * up) / (half_width * size)
    v = (math.cos(turn) * up - math.sin(turn) * right) / (half_height * size)
    inside = np.maximum(abs(u), abs(v)) < 1 if shape == 0 else u**2 + v**2 < 1
    covered = inside.reshape(SIDE, fine, SIDE, fine).mean((1, 3))
    drawn = render(np.array([[shape, 5, angle, x, y]]))[0, ..., 0] / 255
    assert np.abs(drawn - covered).max() < 0.25
    assert np.abs(drawn - covered)[covered != drawn].mean() < 0.05


def test_places_move_the_shape_evenly_from_16_to_48():
    centres = np.array([centroid(frame) for frame in render(np.array([[0, 3, 0, n, 31 - n] for n in range(32)]))])
    assert centres == pytest.approx(np.stack([np.linspace(16, 48, 32), np.linspace(48, 16, 32)], 1), abs=0.1)


@pytest.mark.parametrize("shape", range(3))
def test_shapes_look_the_same_as_often_in_a_turn_as_is_said(shape):
    turned = render(np.array([[shape, 5, angle, 16, 16] for angle in range(40)])).astype(int)
    likeness = np.abs(turned - turned[:1]).mean((1, 2, 3))
    same = np.flatnonzero(likeness < 0.5).tolist()
    assert same == list(range(0, 40, 40 // sprites.TURNS[shape]))


def test_even_the_largest_shape_lies_within_the_frame():
    corners = np.array(
        [[shape, 5, angle, x, y] for shape in range(3) for angle in range(40) for x in (0, 31) for y in (0, 31)]
    )
    frames = render(corners)
    assert not frames[:, [0, -1]].any()
    assert not frames[:, :, [0, -1]].any()


def test_a_stranger_is_none_of_the_shapes():
    ring = render(np.array([[STRANGER, 5, 0, 16, 16]]))[0, ..., 0]
    y, x = np.round(centroid(ring[..., None]) - 0.5).astype(int)
    assert ring[x, y] == 0
    assert ring.any()


def test_batches_are_a_function_of_seed_and_step():
    frames, factors = next(sprites.batches(8, seed=3, start=2))
    stream = sprites.batches(8, seed=3)
    again = [next(stream) for _ in range(3)]
    assert np.array_equal(again[2][1], factors)
    assert np.array_equal(again[2][0].numpy(), frames.numpy())
    assert np.array_equal(frames.numpy(), render(factors))
    assert not np.array_equal(next(sprites.batches(8, seed=4))[1], again[0][1])


@pytest.mark.parametrize(
    "factors", [[[0, 0, 0, 0]], [[0, 6, 0, 0, 0]], [[-1, 0, 0, 0, 0]], [[STRANGER + 1, 0, 0, 0, 0]]]
)
def test_factors_that_there_are_not_are_refused(factors):
    with pytest.raises(ValueError, match="factors must"):
        render(np.array(factors))
