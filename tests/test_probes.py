"""Probes find what is in the codes, on episodes that they have not seen, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from worldvae.measures.probes import probe

EPISODES = np.repeat(np.arange(12), 50)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)


def test_what_is_linear_in_the_codes_is_read_but_for_its_noise(codes):
    random = np.random.default_rng(1)
    state = 2 * codes[:, 0] - codes[:, 1] + 5 + random.standard_normal(600)
    told = probe(codes, {"speed": state}, EPISODES)["speed"]
    assert told.linear == pytest.approx(5 / 6, abs=0.04)  # variance 4 + 1 of 6
    np.testing.assert_allclose(told.alone, [4 / 6, 1 / 6, 0], atol=0.06)


def test_the_direction_is_how_codes_change_with_the_quantity(codes):
    """Of correlated latents too, where a regression's weights are another vector: z_1 = z_0 / 2 + noise."""
    codes = codes.copy()
    codes[:, 1] += 0.5 * codes[:, 0]
    told = probe(codes, {"speed": 3 * codes[:, 0]}, EPISODES)["speed"]
    np.testing.assert_allclose(told.direction, [1, 0.5, 0], atol=0.12)  # three standard errors of 600 frames


def test_what_is_not_linear_is_read_by_the_network_alone(codes):
    told = probe(codes, {"speed": np.abs(codes[:, 2])}, EPISODES)["speed"]
    assert told.mlp > 0.8
    assert told.linear < 0.1


def test_what_is_not_in_the_codes_is_not_read_though_neighbours_share_it(codes):
    """Each episode has its own value, and codes tell episodes apart: only whole episodes held out show it."""
    random = np.random.default_rng(2)
    marked = codes + 20 * random.standard_normal((12, 3)).astype(np.float32)[EPISODES]
    told = probe(marked, {"weather": random.standard_normal(12)[EPISODES]}, EPISODES)["weather"]
    assert told.linear < 0.3
    assert told.mlp < 0.3


def test_frames_of_unknown_state_are_left_out_and_so_is_what_never_varies(codes):
    state = codes[:, 0].astype(float)
    state[::3] = np.nan
    told = probe(codes, {"speed": state, "gravity": np.full(600, 9.81)}, EPISODES)
    assert set(told) == {"speed"}
    assert told["speed"].linear > 0.99


def test_bad_input_is_told(codes):
    with pytest.raises(ValueError, match="one number for each of 600 frames"):
        probe(codes, {"speed": np.zeros(5)}, EPISODES)
    with pytest.raises(ValueError, match="'speed' is known in 1 of them"):
        probe(codes, {"speed": codes[:, 0]}, np.zeros(600, int))
