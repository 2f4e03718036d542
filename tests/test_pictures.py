"""Pictures show what they say: cells in their places, films that decode to what went in."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from worldvae import FrameVAE, FrameVAEConfig
from worldvae.pictures import (
    GAP,
    codec_pictures,
    grid,
    interpolations,
    reconstructions,
    save_film,
    save_png,
    side_by_side,
    traversals,
)


@pytest.fixture(scope="module")
def vae() -> FrameVAE:
    torch.manual_seed(0)
    return FrameVAE(FrameVAEConfig(latent_size=4)).eval()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)


def cell(image: np.ndarray, row: int, column: int, scale: int = 2) -> np.ndarray:
    """The 64x64 frame shown in a cell, its repeated pixels taken once."""
    y, x = GAP + row * (64 * scale + GAP), GAP + column * (64 * scale + GAP)
    return image[y : y + 64 * scale : scale, x : x + 64 * scale : scale]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_each_frame_in_its_cell_between_white_lines(channels):
    cells = np.random.default_rng(1).integers(0, 255, (2, 3, 64, 64, channels), dtype=np.uint8)
    image = grid(cells)
    assert image.shape == (2 * 130 + GAP, 3 * 130 + GAP, 3)
    for row in range(2):
        for column in range(3):
            assert (cell(image, row, column) == cells[row, column]).all()
    assert (image[:GAP] == 255).all()
    assert (image[-GAP:] == 255).all()


def test_reconstructions_stand_below_their_frames(vae, frames):
    image = reconstructions(vae, frames[:5])
    decoded = vae.decode(vae.encode(frames[:5]).mean.numpy())
    for k in range(5):
        assert (cell(image, 0, k) == frames[k]).all()
        assert (cell(image, 1, k) == decoded[k]).all()


def test_interpolations_begin_and_end_at_the_two_reconstructions(vae, frames):
    image = interpolations(vae, frames[:2], frames[2:4], steps=6)
    decoded = vae.decode(vae.encode(frames[:4]).mean.numpy())
    for row in range(2):
        np.testing.assert_allclose(cell(image, row, 0).astype(int), decoded[row], atol=1)
        np.testing.assert_allclose(cell(image, row, 5).astype(int), decoded[row + 2], atol=1)


def test_traversals_move_one_latent_a_row_those_with_most_kl_first(vae, frames):
    image = traversals(vae, frames, columns=3, most=2)
    posterior = vae.encode(frames)
    order = posterior.kl().mean(0).argsort(descending=True)
    base = posterior.mean[posterior.kl().sum(1).argsort()[len(frames) * 3 // 4]]
    for row in range(2):
        for column, value in enumerate((-3, 0, 3)):
            z = base.clone()
            z[order[row]] = value
            np.testing.assert_allclose(cell(image, row, column).astype(int), vae.decode(z).numpy(), atol=1)


def test_the_codecs_pictures_are_written_as_png(vae, frames, tmp_path):
    paths = codec_pictures(vae, frames, tmp_path)
    assert {path.name for path in paths} == {
        "reconstructions.png",
        "prior_samples.png",
        "interpolations.png",
        "traversals.png",
    }
    assert all(cv2.imread(str(path)) is not None for path in paths)


def test_a_png_keeps_its_colours(tmp_path, frames):
    save_png(tmp_path / "a.png", frames[0])
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == frames[0]).all()


def test_films_in_both_formats_show_every_frame(tmp_path):
    smooth = np.stack([np.full((64, 64, 3), 20 * t, np.uint8) for t in range(12)])
    images = side_by_side([smooth, smooth])
    webm, gif = save_film(tmp_path / "a new folder" / "film", images, fps=12.5)
    capture = cv2.VideoCapture(str(webm))
    shown = []
    while (read := capture.read())[0]:
        shown.append(read[1])
    assert len(shown) == 12
    for t, image in enumerate(shown):
        assert abs(image[100, 100].mean() - 20 * t) < 6  # VP9 is lossy
    _, animation = cv2.imreadanimation(str(gif))
    assert len(animation.frames) == 12
    for t, image in enumerate(animation.frames):
        assert abs(image[100, 100, :3].mean() - 20 * t) < 20  # a palette of few colours
