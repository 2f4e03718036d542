"""Latents are moved one at a time, named by what they tell, and lines between frames run through their codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch

from scripts.traverse import interpolation_film, names, traversal, traversal_film
from tests.scenes import SIDE, scene_store
from worldvae import FrameSpec, FrameVAE, FrameVAEConfig
from worldvae.measures.probes import Probe
from worldvae.pictures import CAPTION, GAP, between, labelled, moved, ranked, tiles

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def vae() -> FrameVAE:
    torch.manual_seed(0)
    return FrameVAE(FrameVAEConfig(FrameSpec(SIDE, SIDE), latent_size=4)).eval()


def test_moved_codes_differ_from_their_base_in_one_latent():
    base, latents = np.arange(4, dtype=np.float32), np.array([2, 0])
    codes = moved(base, latents, np.array([-3.0, 3.0]))
    expected = [[[0, 1, -3, 3], [0, 1, 3, 3]], [[-3, 1, 2, 3], [3, 1, 2, 3]]]
    np.testing.assert_array_equal(codes, expected)


def test_points_between_codes_lie_on_the_lines_and_lead_back_to_the_first():
    codes = np.array([[0, 0], [4, 0], [4, 8]], np.float32)
    path = between(codes, 4)
    np.testing.assert_allclose(path[::4], codes)
    np.testing.assert_allclose(path[1:4], [[1, 0], [2, 0], [3, 0]])
    np.testing.assert_allclose(path[9:], [[3, 6], [2, 4], [1, 2]])


def test_a_latent_is_named_by_what_it_tells_best_and_only_if_it_tells_enough():
    probes = {
        "speed": Probe(0.9, 0.9, np.array([0.8, 0.1, 0.4, -3.0]), np.zeros(4)),
        "curve": Probe(0.9, 0.9, np.array([0.2, 0.29, 0.5, -1.0]), np.zeros(4)),
    }
    assert names(probes, 4) == ["speed 0.80", "", "curve 0.50", ""]
    assert names({}, 2) == ["", ""]


def test_known_quantities_that_can_be_read_move_codes_along_their_directions(vae):
    frames = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    direction = np.array([0.5, 0, -1, 0])
    probes = {
        "speed": Probe(0.9, 0.9, np.zeros(4), direction),
        "weather": Probe(0.1, 0.1, np.zeros(4), direction),
    }
    told = traversal(vae, frames, probes, most=2, values=np.array([-1.0, 0.0, 2.0]))
    assert told.names[0] == "speed 0.90"
    assert len(told.names) == len(told.codes) == 3
    _, base = ranked(vae, frames)
    np.testing.assert_allclose(told.codes[0], base + np.outer([-1, 0, 2], direction), rtol=1e-6)


def test_tiles_have_each_frame_below_its_caption():
    frames = np.random.default_rng(0).integers(0, 200, (3, 8, 40, 3), dtype=np.uint8)
    image = tiles(frames, ["a", "b", ""], columns=2, scale=2)
    tall, wide = 16 + CAPTION + GAP, 80 + GAP
    for k, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        cell = image[row * tall + GAP : (row + 1) * tall, column * wide + GAP : (column + 1) * wide]
        np.testing.assert_array_equal(cell[CAPTION::2, ::2], frames[k])
        assert (cell[:CAPTION].min() < 128) == (k < 2)  # ink
    assert (image[tall + GAP :, wide + GAP :] == 255).all()


def test_labels_stand_beside_their_rows_and_leave_the_image_alone():
    image = np.random.default_rng(0).integers(0, 200, (102, 50, 3), dtype=np.uint8)
    shown = labelled(image, ["", "speed"], width=100)
    np.testing.assert_array_equal(shown[:, 100:], image)
    assert (shown[:50, :100] == 255).all()
    assert shown[50:, :100].min() < 128


def test_every_tile_swings_its_own_latent_from_0_on(vae):
    frames = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    film = traversal_film(vae, frames, {}, most=4, steps=4)
    for k in range(4):
        left, top, side = GAP + k * (2 * SIDE + GAP), GAP + CAPTION, 2 * SIDE
        still, up = (image[top : top + side, left : left + side] for image in film[:2])
        assert (up != still).any()
    _, base = ranked(vae, frames)
    base[ranked(vae, frames)[0][3]] = 0
    np.testing.assert_allclose(still[::2, ::2].astype(int), vae.decode(base), atol=1)


def test_a_film_of_two_codecs_shows_both_at_the_frames_themselves(vae):
    torch.manual_seed(1)
    other = FrameVAE(vae.config).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    film = interpolation_film({"VAE": vae, "AE": other}, frames, steps=5)
    assert len(film) == 15
    for column, codec in enumerate((vae, other)):
        decoded = codec.decode(codec.encode(frames).mean.numpy())
        left = GAP + column * (4 * SIDE + GAP)
        for k in range(3):
            shown = film[5 * k][GAP + CAPTION : GAP + CAPTION + 4 * SIDE : 4, left : left + 4 * SIDE : 4]
            np.testing.assert_allclose(shown.astype(int), decoded[k], atol=1)


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"scripts.{module}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folders(vae, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A codec, rollouts, and a file of their state with the dot's pixels."""
    folder = tmp_path_factory.mktemp("run")
    vae.save(folder / "vae")
    store, state = scene_store(folder / "rollouts", 6, dot=6)
    mask = np.concatenate([(episode.frames == 255).all(-1) for episode in store])
    safetensors.numpy.save_file({**state, "mask": mask}, folder / "state.safetensors")
    return folder / "vae", folder / "rollouts", folder / "state.safetensors"


def test_the_command_writes_the_grid_and_both_films(folders, tmp_path):
    codec, data, state = folders
    done = command("traverse", codec, data, "--state", state, "--beside", codec, "--frames", 64, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "traversals.png")) is not None
    for film, frames in (("traversals", 48), ("interpolations", 72)):
        _, animation = cv2.imreadanimation(str(tmp_path / f"{film}.gif"))
        assert len(animation.frames) == frames


def test_a_state_of_another_store_is_told_in_a_sentence(folders, tmp_path):
    codec, data, _ = folders
    safetensors.numpy.save_file({"dot": np.zeros(7)}, tmp_path / "wrong.safetensors")
    done = command("traverse", codec, data, "--state", tmp_path / "wrong.safetensors", "--out", tmp_path)
    assert done.returncode == 1
    assert re.search(r"error: .*a row for each of the store's 192 frames, not \{'dot': 7\}", done.stderr)
