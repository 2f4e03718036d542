"""Numbers about pictures, against plain slow versions of themselves."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from worldvae.measures.images import (
    differing,
    diversity,
    image_format_sizes,
    lost_share,
    moving,
    psnr,
    sharpness,
    squared_error,
    ssim,
)

LOSSLESS = ("PNG", "WebP lossless")


def smooth_frames(count: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """[B, 32, 32, C] blurred noise: compressible, no two channels alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, channels), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 3).reshape(32, 32, channels) for frame in noise])


def stretched(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = int(frames.min()), int(frames.max())
    return ((frames - low) * (255.0 / (high - low))).astype(np.uint8)


@given(st.floats(1e-12, 1))
def test_psnr_is_twenty_log10_of_peak_over_root_mean_square_error(mse: float) -> None:
    assert psnr(mse) == pytest.approx(20 * math.log10(1 / math.sqrt(mse)), abs=1e-9)


def test_equal_pictures_have_infinite_psnr_and_one_grey_level_of_error_has_48_decibel() -> None:
    assert psnr(0.0) == math.inf
    assert psnr((1 / 255) ** 2) == pytest.approx(20 * math.log10(255))


few_levels = st.sampled_from([0, 0, 0, 1, 255])
small_frames = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=3).flatmap(
    lambda size: st.tuples(st.integers(1, 6), st.sampled_from([1, 3])).flatmap(
        lambda bc: hnp.arrays(np.uint8, (bc[0], *size, bc[1]), elements=few_levels)
    )
)


@given(small_frames)
def test_diversity_equals_a_loop_over_frames_and_pixels(frames: NDArray[np.uint8]) -> None:
    found = diversity(frames)
    earlier: list[list[int]] = []
    constant = black = new = 0
    for frame in frames:
        pixels = [tuple(p) for row in frame.tolist() for p in row]
        is_constant = all(p == pixels[0] for p in pixels)
        constant += is_constant
        black += is_constant and not any(pixels[0])
        if frame.tolist() not in earlier:
            new += 1
        earlier.append(frame.tolist())
    variances = [float(np.var(values)) for values in frames.reshape(len(frames), -1).T.astype(np.float64)]
    assert (found.constant, found.black) == (constant, black)
    assert found.distinct == pytest.approx(new / len(frames))
    assert found.pixel_sd == pytest.approx(math.sqrt(sum(variances) / len(variances)), rel=1e-4, abs=1e-4)


def test_diversity_stays_exact_over_many_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5000, 4, 4, 3), dtype=np.uint8)
    exact = math.sqrt(frames.astype(np.float64).var(0).mean())
    assert diversity(frames).pixel_sd == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_lose_nothing_and_lossy_ones_something(channels: int) -> None:
    sizes = image_format_sizes(stretched(smooth_frames(3, channels)))
    for name, (_, decibel) in sizes.items():
        assert (decibel == math.inf) == (name in LOSSLESS), name
    assert sizes["JPEG 10"][0] < sizes["JPEG 90"][0]
    assert sizes["JPEG 10"][1] < sizes["JPEG 90"][1]
    assert sizes["WebP 10"][0] < sizes["WebP 80"][0]
    assert sizes["WebP 10"][1] < sizes["WebP 80"][1]


@pytest.mark.parametrize(("name", "extension", "quality"), [("JPEG 90", ".jpg", 90), ("JPEG 10", ".jpg", 10)])
def test_a_format_gets_red_as_red_and_blue_as_blue(name: str, extension: str, quality: int) -> None:
    # OpenCV's files are BGR. Lossy formats spend more on green and red than on blue, so it matters.
    frames = stretched(smooth_frames(2, 3))
    frames[..., 2] = 0
    sizes, errors = [], []
    for frame in frames:
        _, data = cv2.imencode(extension, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        back = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        sizes.append(len(data))
        errors.append(np.square((back.astype(np.float64) - frame) / 255).mean())
    size, decibel = image_format_sizes(frames)[name]
    assert size == np.mean(sizes)
    assert decibel == pytest.approx(-10 * math.log10(np.mean(errors)), abs=0.01)


def test_a_lossless_size_is_that_of_the_files() -> None:
    frames = smooth_frames(2, 1)
    sizes = [len(cv2.imencode(".png", frame)[1]) for frame in frames]
    assert image_format_sizes(frames)["PNG"][0] == np.mean(sizes)


def noisy(frames: NDArray[np.uint8], sd: float, seed: int = 1) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, sd, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_a_loop_over_windows(channels: int) -> None:
    real = stretched(smooth_frames(2, channels))[:, :16, :14]
    made = noisy(real, 20)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for b in range(2):
        values = []
        for row in range(16 - 10):
            for column in range(14 - 10):
                for c in range(channels):
                    x, y = (f[b, row : row + 11, column : column + 11, c].astype(float) for f in (made, real))
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
                    values.append(luminance * (2 * cov + c2) / (vx + vy + c2))
        assert ssim(made, real)[b] == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(real, real) == pytest.approx([1, 1])


def test_ssim_says_where_frames_are_too_small_for_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.zeros((1, 10, 32, 3), np.uint8), np.zeros((1, 10, 32, 3), np.uint8))


def test_blurred_frames_are_less_sharp_and_noisy_ones_more() -> None:
    real = noisy(stretched(smooth_frames(4, 3)), 10, seed=3)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 1) for frame in real])
    assert sharpness(real, real) == 1
    assert sharpness(blurred, real) < 0.2
    assert sharpness(noisy(real, 20), real) > 2
    assert math.isnan(sharpness(real, np.zeros_like(real)))


def laplacian_variance(frame: NDArray[np.uint8]) -> float:
    f = np.pad(frame.astype(float), ((1, 1), (1, 1), (0, 0)), mode="reflect")  # OpenCV's border
    return float((f[2:, 1:-1] + f[:-2, 1:-1] + f[1:-1, 2:] + f[1:-1, :-2] - 4 * f[1:-1, 1:-1]).var())


def test_sharpness_is_the_ratio_of_laplacian_variances() -> None:
    real, made = smooth_frames(3, 1), noisy(smooth_frames(3, 1), 3)
    expected = np.mean([laplacian_variance(f) for f in made]) / np.mean([laplacian_variance(f) for f in real])
    assert sharpness(made, real) == pytest.approx(expected, rel=1e-5)


def test_squared_error_is_psnrs() -> None:
    real, made = smooth_frames(2, 3), noisy(smooth_frames(2, 3), 5)
    expected = np.square((made.astype(float) - real) / 255).mean(-1)
    np.testing.assert_allclose(squared_error(made, real), expected, rtol=1e-5)


def test_what_moved_differs_from_the_frame_before_and_nothing_has_in_the_first() -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[0, 2, 2], frames[1, 2, 3, 1], frames[2, 2, 3, 1] = 255, 200, 210  # a shade's change is none
    expected = np.zeros((3, 8, 8), bool)
    expected[1, 2, 2:4] = True
    assert (moving(frames) == expected).all()


def test_objects_painted_over_with_background_are_lost_each_counting_once() -> None:
    background = np.full((16, 16, 3), 40, np.uint8)
    real = np.repeat(background[None], 2, 0)
    real[0, 1:3, 1:3], real[0, 8:14, 4:14], real[1, 5:7, 5:7], real[1, 12, 12] = 255, 200, 255, 255
    masks = differing(real, background)
    made = real.copy()
    made[0, 1:3, 1:3] = 40  # a small one is dropped, the large one is there
    made[1] = noisy(real[1:], 10)[0]
    made[1, 12, 12] = 40  # a single pixel is no object
    assert lost_share(made, real, background, masks) == pytest.approx(1 / 3)
    assert lost_share(real, real, background, masks) == 0
    assert lost_share(np.repeat(background[None], 2, 0), real, background, masks) == 1
    assert math.isnan(lost_share(real, real, background, np.zeros_like(masks)))
